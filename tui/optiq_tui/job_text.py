"""What there is to say about one job: settings, plan, curves and log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, tzinfo

from rich.text import Text

from optiq_client import Job, Progress, TrainingPlan, humanize
from optiq_tui.view import View
from optiq_tui.widgets.chart import LINE_TONES, Curve
from optiq_tui.widgets.gauge import bar, of
from optiq_tui.widgets.tones import JOB, Tones

LABEL = 8
BAR = 6
REPORTS = 12


def describe_job(job: Job, tones: Tones, now: datetime) -> Text:
    """State and why, settings, and the plan against its ceilings."""
    config = job.config
    text = Text.assemble(tones.mark(JOB, job.state), f" {_when(job, now)} · adapter {job.adapter_id}")
    if job.state_reason:
        text.append(f"\n{job.state_reason}", tones.style("error" if job.state.ended else "warning"))
    scaling = config.rank_scaling.lower().replace("_", " ")
    ranks = f"{config.rank or 8}" + ("" if scaling == "unspecified" else f" {scaling}")
    rate = f"{config.learning_rate:g}" if config.learning_rate else "default"
    schedule, zone = job.schedule, now.tzinfo
    for label, value in (
        ("priority", f"{schedule.priority:+d}" if schedule.priority else ""),
        ("after", ", ".join(name.rpartition("/")[2] for name in schedule.after)),
        ("not til", _at(schedule.not_before, zone) if job.start_time is None else ""),
        ("started", _at(job.start_time, zone)),
        ("rank", ranks),
        ("steps", f"{config.iters or 100}, {config.batch_size or 4} examples each"),
        ("learning", f"rate {rate}"),
        ("data", config.data_path),
        ("peak", humanize.size(job.progress.peak_memory_bytes) if job.progress else ""),
        ("adapter", f"{job.adapter_id}@{job.adapter_digest[:8]}" if job.adapter_digest else ""),
        ("attempts", str(job.attempts) if job.attempts > 1 else ""),
    ):
        if value:
            text.append(f"\n{label:<{LABEL}} ", "dim")
            text.append(value)
    if job.plan is not None:
        text.append("\n")
        text.append_text(describe_plan(job.plan, tones))
    return text


def describe_plan(plan: TrainingPlan, tones: Tones) -> Text:
    """Both ceilings, what the peak is made of, and what would make it fit."""
    verdict = tones.text("✔ fits", "success") if plan.fits else tones.text("⊘ does not fit", "error")
    text = Text.assemble(("plan     ", "dim"), verdict)
    text.append_text(_ceiling("bytes", plan.bound_bytes, plan.free_bytes, tones, humanize.size))
    text.append_text(_ceiling("buffers", plan.live_buffers, plan.resource_limit, tones, humanize.count))
    parts = (
        ("base", plan.base_bytes),
        ("activations", plan.activation_bytes),
        ("temporary", plan.temporary_bytes),
        ("optimizer", plan.optimizer_bytes),
        ("adapter", plan.adapter_bytes),
    )
    text.append(f"\n{'peak':<{LABEL}} ", "dim")
    text.append(f"{humanize.size(plan.expected_bytes)} expected:")
    for name, size in parts:
        if size:
            text.append(f"\n{'':<{LABEL}} {humanize.size(size):>8} {name}", "dim")
    for reason in plan.reasons:
        text.append(f"\n{reason}", tones.style("error"))
    if plan.advice:
        text.append("\nwhat would make it fit:", "bold")
    for advice in plan.advice:
        text.append("\n→ ", tones.style("primary"))
        text.append(advice.text)
        text.append(f"  {humanize.size(advice.expected_bytes)}, {advice.time_ratio:.2f}x the time", "dim")
    return text


def curves(jobs: Sequence[Job], known: Mapping[str, tuple[Progress, ...]]) -> list[Curve]:
    """Train loss as a line and validation loss as points, one colour a job; several jobs are named."""
    found: list[Curve] = []
    for number, job in enumerate(jobs):
        points = known.get(job.name, ())
        if not points:
            continue
        tone = LINE_TONES[number % len(LINE_TONES)]
        name = job.id if len(jobs) > 1 else "train"
        found.append(Curve(name, [p.step for p in points], [p.train_loss for p in points], tone))
        if valid := validations(points):
            alone = len(jobs) == 1
            steps, losses = [step for step, _ in valid], [loss for _, loss in valid]
            found.append(Curve("valid" if alone else "", steps, losses, "warning" if alone else tone, points=True))
    return found


def validations(points: tuple[Progress, ...]) -> list[tuple[int, float]]:
    """The steps at which the validation loss changed: reports between validations repeat the last one."""
    found: list[tuple[int, float]] = []
    for point in points:
        if point.valid_loss is not None and (not found or found[-1][1] != point.valid_loss):
            found.append((point.step, point.valid_loss))
    return found


def job_log(job: Job, view: View, tones: Tones, zone: tzinfo | None) -> Text:
    """Its last reports, what happened to it, and what its trainer wrote; the newest first."""
    lines = []
    for point in reversed(view.curves.get(job.name, ())[-REPORTS:]):
        line = Text.assemble((f"step {point.step:>4}  ", "dim"), f"loss {point.train_loss:.3f}")
        if point.valid_loss is not None:
            line.append(f"  valid {point.valid_loss:.3f}", tones.style("warning"))
        line.append(f"  rate {point.learning_rate:.3g}  {point.tokens_per_second:.0f} tok/s", "dim")
        line.append(f"  {humanize.size(point.peak_memory_bytes)}", "dim")
        lines.append(line)
    for event in reversed(view.events):
        if event.resource == job.name:
            at = event.time.astimezone(zone).strftime("%H:%M:%S") if event.time else "-"
            lines.append(Text.assemble((f"{at}  ", "dim"), (event.type, tones.style("accent")), f"  {event.message}"))
    if view.log.name == job.name and view.log.lines:
        lines.append(Text("trainer", style="bold"))
        lines += [Text(line, style="dim") for line in reversed(view.log.lines)]
    return Text("\n").join(lines) if lines else Text("Nothing yet.", style="dim")


def _ceiling(label: str, value: int, ceiling: int, tones: Tones, shown: Callable[[int], str]) -> Text:
    text = Text.assemble((f"\n{label:<{LABEL}} ", "dim"))
    if ceiling:
        tone = "error" if value > ceiling else "success"
        text.append_text(bar(value / ceiling, BAR, tones.style(tone)))
        text.append(f" {of(value, ceiling, shown)}")
    else:
        text.append(f"{shown(value)}, no limit on this device")
    return text


def _at(time: datetime | None, zone: tzinfo | None) -> str:
    return time.astimezone(zone).strftime("%b %d %H:%M:%S") if time is not None else ""


def _when(job: Job, now: datetime) -> str:
    if job.end_time is not None:
        return f"{humanize.since(job.end_time, now)} ago"
    if job.start_time is not None:
        return f"for {humanize.since(job.start_time, now)}"
    return f"for {humanize.since(job.create_time, now)}"
