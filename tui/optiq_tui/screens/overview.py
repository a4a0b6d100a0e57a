"""1 Overview: what is served on which device, how hard it works, and how near the ceilings it is."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from rich.text import Text
from textual.containers import Container
from textual.widget import Widget

from optiq_client import Adapter, AdapterState, Job, JobState, Status, humanize
from optiq_tui.screens.board import Board
from optiq_tui.view import Part, View
from optiq_tui.widgets.columns import Column
from optiq_tui.widgets.gauge import Gauge, bar, of
from optiq_tui.widgets.panel import Panel
from optiq_tui.widgets.table import Table
from optiq_tui.widgets.tones import ENGINE, JOB
from optiq_tui.widgets.trend import Trend
from optiq_tui.widgets.words import Words

SHOWN_EVENTS = 30
IN_ENGINE = {AdapterState.RESIDENT, AdapterState.LOADING, AdapterState.UNLOADING}


class Overview(Board):
    """The engine, the memory, the load, who is resident and what trains."""

    NAME = "overview"
    HELP = "The whole daemon at a glance. `1` to `6` go to the screens, `ctrl+p` finds every command."

    def __init__(self) -> None:
        super().__init__()
        self._now = datetime.min
        self.engine = Words(id="engine-text", classes="lines")
        self.gauges = {name: Gauge(label, id=f"gauge-{name}") for name, label in GAUGES.items()}
        self.speed = Trend("tokens/s", id="speed")
        self.rows = Trend("rows", id="rows")
        self.queue = Trend("queued", id="queue")
        self.residents: Table[Adapter] = Table(
            (
                Column("adapter", lambda a: Text(a.id, style="bold"), 12, flex=2, sort=lambda a: a.id),
                Column("version", self._version, 10, drop=3, sort=lambda a: a.version),
                Column("memory", lambda a: humanize.size(a.resident_bytes), 8, right=True, sort=_memory),
                Column("leases", lambda a: str(a.active_leases or "-"), 6, right=True, sort=lambda a: a.active_leases),
                Column("keep-alive", _keep_alive, 10, right=True, drop=2),
                Column("last use", self._last_use, 8, right=True, drop=1, sort=lambda a: a.last_use_time or a.name),
            ),
            lambda a: a.name,
            id="residents-table",
        )
        self.training = Words(id="training-text", classes="lines")
        self.events = Words(id="latest-text", classes="lines")

    def body(self) -> Iterator[Widget]:
        """Six panels."""
        yield Container(
            Panel("Engine", self.engine, id="engine"),
            Panel("Memory", *self.gauges.values(), id="memory"),
            Container(self.speed, self.rows, self.queue, id="trends"),
            Panel("Resident adapters", self.residents, id="residents"),
            Panel("Latest events", self.events, id="latest"),
            Panel("Training", self.training, id="training"),
            id="overview",
        )

    def home(self) -> Widget | None:
        """The residents."""
        return self.residents

    def show(self, view: View, parts: frozenset[Part]) -> None:
        """Draw what has changed."""
        status = view.status
        assert status is not None
        self._now = self.optiq.now()
        if Part.STATUS in parts:
            self._show_status(status, view)
        if parts & {Part.ADAPTERS, Part.STATUS}:
            self._show_residents(status, view)
        if parts & {Part.JOBS, Part.STATUS}:
            self._show_training(view.jobs)
            self._show_plan(view.jobs)
        if Part.EVENTS in parts:
            self._show_events(view)

    def _show_status(self, status: Status, view: View) -> None:
        base, engine, device, tones = status.base, status.engine, status.device, self.tones
        state = tones.mark(ENGINE, engine.state)
        if engine.restarts:
            state.append(f"  {engine.restarts} restarts", tones.style("warning"))
        model = Text(base.model.rpartition("/")[2] or "no base yet", style="bold")
        if base.layer_count:
            model.append(f"  {base.bits_per_weight:.1f} bits · {base.layer_count} layers", "not bold dim")
        where = Text(device.kind, style="bold")
        where.append(f"  {device.compute} · {device.name}", "not bold dim")
        cache = Text(f"context {base.max_context:,} · KV cache {engine.kv_cache or 'float'}", style="dim")
        if engine.prefix_hits and self.has_class("-wide"):
            cache.append(f" · {humanize.count(engine.prefix_hit_tokens)} tokens from prefixes")
        mixed = Text(f"≤{engine.max_adapters_in_one_step} adapters in a step", style="dim")
        mixed.append(f" · {humanize.count(engine.generated_tokens)} tok")
        lines = Text("\n").join((state, model, where, cache, mixed))
        self.engine.update(lines)
        self.gauges["process"].show(
            status.process_memory_bytes,
            status.memory_limit_bytes,
            of(status.process_memory_bytes, status.memory_limit_bytes),
        )
        self.gauges["adapters"].show(
            engine.adapter_bytes, engine.adapter_budget_bytes, of(engine.adapter_bytes, engine.adapter_budget_bytes)
        )
        self.gauges["kv"].show(
            engine.kv_cache_bytes, engine.kv_budget_bytes, of(engine.kv_cache_bytes, engine.kv_budget_bytes)
        )
        trends = view.trends
        self.speed.show(trends.tokens_per_second, f"{engine.tokens_per_second:.1f}")
        self.rows.show(trends.rows, str(engine.active_rows))
        self.queue.show(trends.queued, str(engine.queued_requests))

    def _show_plan(self, jobs: tuple[Job, ...]) -> None:
        """The two ceilings of training: those of the job that runs, else of the one that is next."""
        planned = [job for job in jobs if job.plan is not None and not job.state.ended]
        planned.sort(key=lambda job: job.state is not JobState.RUNNING)
        plan = planned[0].plan if planned else None
        if plan is None:
            self.gauges["training"].show(0, 0, "nothing planned")
            self.gauges["buffers"].show(0, 0, "-")
            return
        self.gauges["training"].show(plan.bound_bytes, plan.free_bytes, of(plan.bound_bytes, plan.free_bytes))
        text = of(plan.live_buffers, plan.resource_limit, humanize.count)
        self.gauges["buffers"].show(
            plan.live_buffers, plan.resource_limit, text if plan.resource_limit else f"{text}, no limit here"
        )

    def _show_residents(self, status: Status, view: View) -> None:
        resident = [adapter for adapter in view.adapters if adapter.state in IN_ENGINE]
        resident.sort(key=lambda adapter: (-adapter.active_leases, adapter.name))
        if view.adapters:
            self.residents.empty_text = Text.assemble(
                "None is in the engine; a request loads what it needs:\n\n  ",
                (f'optiq generate --adapter {view.adapters[0].id} "your prompt"', "bold"),
            )
        else:
            self.residents.empty_text = Text.assemble(
                "No adapters yet. Copy an adapter folder here and it is served:\n  ",
                (f"{status.adapters_path}/{self.optiq.tenant}/NAME", "bold"),
                "\nor train one:\n  ",
                ("optiq jobs submit --adapter NAME --data FOLDER", "bold"),
            )
        self.residents.show(resident)
        quarantined = f" · {status.quarantined_adapter_count} quarantined" if status.quarantined_adapter_count else ""
        known = f"{len(resident)} of {len(view.adapters)}{quarantined}" if view.adapters else ""
        self.query_one("#residents", Panel).count(known)

    def _show_training(self, jobs: tuple[Job, ...]) -> None:
        tones = self.tones
        active = [job for job in jobs if not job.state.ended]
        active.sort(key=lambda job: job.state is not JobState.RUNNING)
        lines = []
        for job in active[:6]:
            line = Text.assemble(tones.mark(JOB, job.state), (f"  {job.id}  ", "bold"))
            if (now := job.progress) is not None:
                line.append_text(bar(now.step / max(1, now.total_steps), 12, tones.style("primary")))
                line.append(f" {now.step}/{now.total_steps}", "bold")
                line.append(f"  loss {now.train_loss:.3f} · {now.tokens_per_second:.0f} tok/s", "dim")
                line.append(f" · {humanize.duration(now.seconds_left)} left", "dim")
            elif job.state_reason:
                line.append(job.state_reason, "dim")
            lines.append(line)
        empty = Text.assemble(
            ("No job waits or runs. ", "dim"), ("optiq jobs submit --adapter NAME --data FOLDER", "bold")
        )
        self.training.update(Text("\n").join(lines) if lines else empty)
        self.query_one("#training", Panel).count(f"{len(active)} not ended" if active else "")

    def _show_events(self, view: View) -> None:
        lines = []
        for event in reversed(view.events[-SHOWN_EVENTS:]):
            zone = self._now.tzinfo
            line = Text(event.time.astimezone(zone).strftime("%H:%M:%S  ") if event.time else "-  ", style="dim")
            line.append(f"{event.type:<20}  ", "not dim")
            about = event.resource.rpartition("/")[2]
            line.append(f"{about}: {event.message}" if about else event.message, "dim")
            lines.append(line)
        self.events.update(Text("\n").join(lines))

    def _version(self, adapter: Adapter) -> Text:
        number = f"v{adapter.version} " if adapter.version else ""
        return self.tones.text(f"{number}{humanize.short_digest(adapter.digest)[:6]}", "text-muted")

    def _last_use(self, adapter: Adapter) -> str:
        return humanize.since(adapter.last_use_time, self._now)


GAUGES = {
    "process": "processes",
    "adapters": "adapters",
    "kv": "KV caches",
    "training": "training",
    "buffers": "buffers",
}


def _memory(adapter: Adapter) -> int:
    return adapter.resident_bytes


def _keep_alive(adapter: Adapter) -> str:
    if adapter.pinned:
        return "pinned"
    if adapter.keep_alive_seconds is None:
        return "default"
    return humanize.duration(adapter.keep_alive_seconds) if adapter.keep_alive_seconds else "forever"
