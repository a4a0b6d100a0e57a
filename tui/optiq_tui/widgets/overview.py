"""Two lines at the top: what is served on which device, and how hard it works."""

from __future__ import annotations

from collections import deque

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import Sparkline, Static

from optiq_client import Status, humanize
from optiq_tui.widgets.tones import ENGINE, Tones

SAMPLES = 60
BAR_WIDTH = 16
SHORT_BAR_WIDTH = 5
ROOMY = 130
VERY_ROOMY = 180


class Overview(Vertical):
    """Base, device, engine, speed and memory."""

    def __init__(self) -> None:
        super().__init__(id="overview")
        self._title = Static("", id="overview-title")
        self._speed = Static("", id="speed")
        self._load = Static("", id="load")
        self._memory = Static("", id="memory")
        self._samples: deque[float] = deque([0.0] * SAMPLES, maxlen=SAMPLES)
        self._spark = Sparkline(list(self._samples), id="spark")
        self._status: Status | None = None

    def compose(self) -> ComposeResult:
        """Title above, gauges below."""
        yield self._title
        with Horizontal(id="gauges"):
            yield self._speed
            yield self._spark
            yield self._load
            yield self._memory

    def on_mount(self) -> None:
        """Something to see before the first status."""
        self._title.update(Text("optiq", style="bold"))

    def on_resize(self) -> None:
        """Longer texts where there is room."""
        if self._status is not None:
            self._draw(self._status)

    def show(self, status: Status) -> None:
        """Show this status; its speed is one more sample."""
        self._status = status
        self._samples.append(status.engine.tokens_per_second)
        self._spark.data = list(self._samples)
        self._draw(status)

    def _draw(self, status: Status) -> None:
        roomy = self.size.width >= ROOMY
        tones = Tones(self.app.theme_variables)
        base, engine, device = status.base, status.engine, status.device
        title = Text.assemble(("optiq ", "bold"), (f"{status.version}  ", "dim"), tones.mark(ENGINE, engine.state))
        if engine.message:
            title.append(f": {engine.message}", tones.style("warning"))
        title.append("   ")
        title.append(base.model.rpartition("/")[2] or "no base yet", "bold")
        if base.layer_count:
            title.append(f"  {base.bits_per_weight:.1f} bits · {humanize.size(base.memory_bytes)}", "dim")
            if roomy:
                title.append(f" · {base.layer_count} layers · context {base.max_context}", "dim")
        title.append("   ")
        title.append(device.kind, "bold")
        title.append(f"  {device.compute}" + (f" · {device.name}" if roomy else ""), "dim")
        if roomy and engine.restarts:
            title.append(f"   {engine.restarts} engine restarts", tones.style("warning"))
        self._title.update(title)

        self._speed.update(_gauge("tokens/s", f"{engine.tokens_per_second:.1f}"))
        load = _gauge("rows", str(engine.active_rows))
        load.append_text(_gauge("  queued", str(engine.queued_requests)))
        load.append_text(_gauge("  adapters/step" if roomy else "  mixed", f"≤{engine.max_adapters_in_one_step}"))
        self._load.update(load)
        self._memory.update(self._memory_text(status, tones, roomy))

    def _memory_text(self, status: Status, tones: Tones, roomy: bool) -> Text:
        used, limit = status.process_memory_bytes, status.memory_limit_bytes
        share = used / limit if limit else 0.0
        tone = "error" if share > 0.9 else "warning" if share > 0.75 else "success"
        width = BAR_WIDTH if roomy else SHORT_BAR_WIDTH
        filled = min(width, round(share * width))
        text = Text("memory ", style="dim") if roomy else Text("mem ", style="dim")
        text.append("━" * filled, tones.style(tone))
        text.append("─" * (width - filled), "dim")
        text.append(f" {humanize.size(used)}", "bold")
        if roomy:
            text.append(f" of {humanize.size(limit)}", "dim")
        if self.size.width >= VERY_ROOMY:
            engine = status.engine
            text.append(
                f"   adapters {humanize.size(engine.adapter_bytes)} · kv {humanize.size(engine.kv_cache_bytes)}"
                f" · engine peak {humanize.size(engine.peak_memory_bytes)}",
                "dim",
            )
        return text


def _gauge(label: str, value: str) -> Text:
    return Text.assemble((f"{label} ", "dim"), (value, "bold"))
