"""Progress reports of a run in a file, and as a picture. No MLX here."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from optiq_core.errors import TrainingError
from optiq_core.train.events import Event, Progress, Started, encode_event


class MetricsFile:
    """JSON lines: every progress report of a run, once, also over restarts."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, event: Event) -> None:
        """Append a report; the start of a run drops those of steps that are about to be taken again."""
        if isinstance(event, Started):
            self._rewind(event.step)
        elif isinstance(event, Progress):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(encode_event(event))

    def read(self) -> list[Progress]:
        """All reports so far."""
        return read_metrics(self._path)

    def _rewind(self, step: int) -> None:
        """Drop reports of later steps, and a line cut short by a crash."""
        if self._path.exists():
            kept = [report for report in self.read() if report.step <= step]
            self._path.write_bytes(b"".join(encode_event(report) for report in kept))


def read_metrics(path: Path) -> list[Progress]:
    """The reports of a metrics file; lines that are none are left out."""
    reports = []
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(msgspec.DecodeError):
            reports.append(msgspec.json.decode(line, type=Progress))
    return reports


def check_plot(target: Path) -> None:
    """Raise TrainingError if no picture of this name can be written; asked before a run, not after it."""
    try:
        import matplotlib.backends  # noqa: F401
    except ImportError as error:
        raise TrainingError("plot: needs matplotlib: pip install 'optiq[experiments]'", field="plot") from error
    if target.suffix not in (".png", ".svg", ".pdf"):
        raise TrainingError(f"plot: must end in .png, .svg or .pdf, is {target.name}", field="plot")


def plot_losses(reports: list[Progress], target: Path) -> None:
    """Draw training and validation loss over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([r.step for r in reports], [r.train_loss for r in reports], label="training")
    valid = [(r.step, r.valid_loss) for r in reports if r.valid_loss is not None]
    if valid:
        axes.plot(*zip(*valid, strict=True), label="validation", marker=".")
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.legend()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)
