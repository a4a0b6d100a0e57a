"""4 Jobs: the queue with its plans, loss curves side by side, the log of one, and a form for the next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.widget import Widget

from optiq_client import Job, JobState, humanize
from optiq_tui.job_text import curves, describe_job, job_log
from optiq_tui.messages import Look
from optiq_tui.screens.board import Board
from optiq_tui.screens.confirm import Confirm
from optiq_tui.screens.submit import Submit
from optiq_tui.view import Part, View
from optiq_tui.widgets.chart import Chart
from optiq_tui.widgets.classes import mark
from optiq_tui.widgets.columns import Column
from optiq_tui.widgets.gauge import bar
from optiq_tui.widgets.panel import Panel
from optiq_tui.widgets.table import Table
from optiq_tui.widgets.tones import JOB
from optiq_tui.widgets.words import Words

ON_JOB = {"cancel", "overlay"}


class Jobs(Board):
    """Training jobs, newest first."""

    NAME = "jobs"
    HELP = (
        "Training jobs, newest first. `n` writes a new one and shows its plan while you do, `space` draws a job's loss "
        "over the others', `v` changes between plan and log where there is no room for both."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "submit", "New", id="jobs.new", tooltip="Write a job; its plan is shown as you type"),
        Binding("space", "overlay", "Overlay", id="jobs.overlay", tooltip="Draw this job's loss over the others'"),
        Binding("v", "turn", "Plan/log", id="jobs.view", tooltip="Show the plan, or the log"),
        Binding("p", "pause", "Pause", id="jobs.pause", tooltip="Pause the job, or let it go on"),
        Binding("x", "cancel", "Cancel", id="jobs.cancel", tooltip="Cancel the job"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._overlaid: list[str] = []
        self.table: Table[Job] = Table(
            (
                Column("", self._mark, 1),
                Column("job", lambda j: Text(j.id, style="bold"), 14, flex=2, sort=lambda j: j.id),
                Column("state", lambda j: self.tones.mark(JOB, j.state), 11, sort=lambda j: j.state),
                Column("progress", self._progress, 18, flex=1, drop=3),
                Column("loss", _loss, 6, right=True, sort=_last_loss),
                Column("valid", _valid, 6, right=True, drop=4),
                Column("tok/s", _speed, 5, right=True, drop=2),
                Column("left", _left, 6, right=True, drop=1),
                Column("plan", self._plan, 9, right=True, drop=5),
                Column("prio", _priority, 4, right=True, drop=6, sort=lambda j: -j.schedule.priority),
                Column("started", self._started, 8, right=True, drop=7, sort=_start),
            ),
            lambda j: j.name,
            id="jobs-table",
            empty=Text.assemble(
                "No training jobs yet. Press ",
                ("n", "bold"),
                " to write one, or:\n  ",
                ("optiq jobs submit --adapter NAME --data FOLDER", "bold"),
                "\n\nFOLDER holds train.jsonl and, if you like, valid.jsonl.",
            ),
        )
        self.chart = Chart(id="loss")
        self.facts = Words(id="job-facts")
        self.log_text = Words(id="job-log-text")

    def body(self) -> Iterator[Widget]:
        """Queue, plan, curves and log."""
        yield Container(
            Panel("Jobs", self.table, id="jobs"),
            Panel("Job", VerticalScroll(self.facts, can_focus=False), id="job"),
            Panel("Loss", self.chart, id="job-loss"),
            Panel("Log", VerticalScroll(self.log_text, can_focus=False), id="job-log"),
            id="jobs-body",
        )

    def home(self) -> Widget | None:
        """The queue."""
        return self.table

    def look(self) -> Look:
        """The curves that are drawn, and the log of the job under the cursor."""
        selected = self.table.selected
        return Look(jobs=tuple(self._drawn()), log=selected.name if selected else "")

    def show(self, view: View, parts: frozenset[Part]) -> None:
        """Draw what has changed."""
        if Part.JOBS in parts:
            self.table.show(view.jobs)
            active = sum(not job.state.ended for job in view.jobs)
            self.query_one("#jobs", Panel).count(f"{active} not ended, {len(view.jobs)} in all" if view.jobs else "")
        if parts & {Part.JOBS, Part.EVENTS, Part.LOG}:
            self._show_job(view)

    def _show_job(self, view: View) -> None:
        job = self.table.selected
        mark(self, job is None, "-nothing")
        if job is None:
            return
        self.query_one("#job", Panel).rename(job.id)
        self.facts.update(describe_job(job, self.tones, self.optiq.now()))
        self.log_text.update(job_log(job, view, self.tones, self.optiq.now().tzinfo))
        drawn = [known for name in self._drawn() for known in view.jobs if known.name == name]
        end = max((j.progress.total_steps for j in drawn if j.progress is not None), default=0)
        self.chart.show_curves(curves(drawn, view.curves), x_end=end)
        points = any(view.curves.get(known.name) for known in drawn)
        self.chart.display = points
        self.query_one("#job-loss", Panel).count("" if points else "no report yet")

    def _drawn(self) -> list[str]:
        """Names of the jobs whose loss is drawn: the one under the cursor, then those that were marked."""
        selected = self.table.selected
        names = [selected.name] if selected else []
        return names + [name for name in self._overlaid if name not in names]

    # Messages

    @on(Table.Highlighted, "#jobs-table")
    def _highlighted(self) -> None:
        self._show_job(self.optiq.view)
        self.send_look()
        self.refresh_keys()

    # Actions

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Actions appear where they mean something; with --readonly never."""
        job = self.table.selected
        if action in ON_JOB and job is None:
            return False
        if action in {"cancel", "pause"}:
            return not self.optiq.readonly and job is not None and not job.state.ended
        return not (action == "submit" and self.optiq.readonly)

    def action_submit(self) -> None:
        """Write a job."""
        self.app.push_screen(Submit())

    def action_overlay(self) -> None:
        """Draw the job's loss whatever is under the cursor, or not any more."""
        if (job := self.table.selected) is not None:
            if job.name in self._overlaid:
                self._overlaid.remove(job.name)
            else:
                self._overlaid.append(job.name)
            self.table.refresh()
            self._show_job(self.optiq.view)
            self.send_look()

    def action_turn(self) -> None:
        """Log in place of the plan, or the other way round."""
        self.toggle_class("-log")

    def action_pause(self) -> None:
        """Pause the job at its next step, or let it go on."""
        if (job := self.table.selected) is not None:
            verb, doing = ("resume", "resuming") if job.state is JobState.PAUSED else ("pause", "pausing")
            self.act(f"{doing} {job.id}", verb, job.name)

    def action_cancel(self) -> None:
        """Cancel the job, after asking."""
        if (job := self.table.selected) is None:
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self.act(f"cancelling {job.id}", "cancel", job.name)

        question = f"Cancel training job {job.id}?"
        self.app.push_screen(Confirm(question, "It ends at its next step; no adapter is made."), answered)

    # Cells

    def _mark(self, job: Job) -> Text:
        return self.tones.text("◆" if job.name in self._overlaid else " ", "primary")

    def _progress(self, job: Job) -> Text:
        now = job.progress
        if now is None:
            return Text(job.state_reason or "-", style="dim")
        line = bar(now.step / max(1, now.total_steps), 8, self.tones.style("primary"))
        return line.append(f" {now.step}/{now.total_steps}")

    def _started(self, job: Job) -> str:
        return job.start_time.astimezone(self.optiq.now().tzinfo).strftime("%H:%M:%S") if job.start_time else "-"

    def _plan(self, job: Job) -> Text:
        if job.plan is None:
            return Text("-")
        return self.tones.text(humanize.size(job.plan.bound_bytes), "success" if job.plan.fits else "error")


def _priority(job: Job) -> str:
    return f"{job.schedule.priority:+d}" if job.schedule.priority else "-"


def _start(job: Job) -> float:
    return job.start_time.timestamp() if job.start_time else float("inf")


def _loss(job: Job) -> str:
    return f"{job.progress.train_loss:.3f}" if job.progress else "-"


def _last_loss(job: Job) -> float:
    return job.progress.train_loss if job.progress else float("inf")


def _valid(job: Job) -> str:
    return f"{job.progress.valid_loss:.3f}" if job.progress and job.progress.valid_loss is not None else "-"


def _speed(job: Job) -> str:
    return f"{job.progress.tokens_per_second:.0f}" if job.progress and job.state is JobState.RUNNING else "-"


def _left(job: Job) -> str:
    return humanize.duration(job.progress.seconds_left) if job.progress and not job.state.ended else "-"
