"""Training jobs, and the loss of the one under the cursor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.text import Text
from textual.app import ComposeResult
from textual.message import Message
from textual.widgets import DataTable, Static

from optiq_client import Job, Progress, humanize
from optiq_tui.widgets.loss import LossPlot
from optiq_tui.widgets.panel import Panel
from optiq_tui.widgets.tones import JOB


class JobsPanel(Panel):
    """State, progress and loss of each job."""

    @dataclass
    class Selected(Message):
        """Another job is under the cursor."""

        name: str

    def __init__(self) -> None:
        super().__init__("jobs", "2 Jobs", ("job", "state", ">step", ">loss", ">tok/s", ">left"))
        self._jobs: dict[str, Job] = {}
        self._curves: Mapping[str, tuple[Progress, ...]] = {}
        self._plot = LossPlot()
        self._detail = Static("", classes="detail", id="job-detail")

    def compose(self) -> ComposeResult:
        """Table, then detail and curve of the selected row."""
        yield from super().compose()
        yield self._detail
        yield self._plot

    @property
    def selected(self) -> Job | None:
        """The job under the cursor."""
        return self._jobs.get(self.table.selected_key)

    def on_mount(self) -> None:
        """Say what to do first."""
        self.empty.update(
            "No training jobs yet. Submit one:\n  [b]optiq jobs submit --adapter NAME --data FOLDER[/b]\n\n"
            "FOLDER holds train.jsonl and, if you like, valid.jsonl."
        )

    def show(self, jobs: tuple[Job, ...], curves: Mapping[str, tuple[Progress, ...]]) -> None:
        """Show this list, newest first."""
        self._jobs = {j.name: j for j in jobs}
        self._curves = curves
        active = sum(not j.state.ended for j in jobs)
        self.show_rows(
            {j.name: self._cells(j) for j in jobs}, count=f"{active} active, {len(jobs)} in all" if jobs else ""
        )
        self._show_selected()

    def _cells(self, job: Job) -> tuple[Text | str, ...]:
        progress = job.progress
        running = progress is not None and not job.state.ended
        return (
            Text(job.id, style="bold"),
            self.tones.mark(JOB, job.state),
            f"{progress.step}/{progress.total_steps}" if progress else "-",
            f"{progress.train_loss:.3f}" if progress else "-",
            f"{progress.tokens_per_second:.0f}" if progress and running else "-",
            humanize.duration(progress.seconds_left) if progress and running else "-",
        )

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Another row is under the cursor."""
        self._show_selected()

    def _show_selected(self) -> None:
        job = self.selected
        if job is None:
            self._detail.update("")
            self._plot.show((), 0)
            return
        self.post_message(self.Selected(job.name))
        config = job.config
        if job.state_reason:
            text = self.tones.text(job.state_reason, "error" if job.state.ended else "warning")
        else:
            scaling = config.rank_scaling.lower().replace("_", " ")
            text = Text(f"{job.adapter_id}: rank {config.rank} {scaling} · batch {config.batch_size}", style="dim")
            text.append(f" · rate {config.learning_rate:g}")
            if job.progress is not None:
                text.append(f" · peak {humanize.size(job.progress.peak_memory_bytes)}")
        self._detail.update(text)
        points = self._curves.get(job.name, ())
        self._plot.show(points, job.progress.total_steps if job.progress else 0)
