"""The loss curve of one job."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Vertical
from textual_plotext import PlotextPlot

from optiq_client import Progress

TRAIN_COLOUR = (79, 193, 255)
VALID_COLOUR = (255, 176, 84)


class LossPlot(Vertical):
    """Training loss as a line, validation loss as points, over steps."""

    def __init__(self) -> None:
        super().__init__(id="loss")
        self._plot = PlotextPlot()
        self._shown: tuple[Progress, ...] | None = None

    def compose(self) -> ComposeResult:
        """The plot."""
        yield self._plot

    def show(self, points: tuple[Progress, ...], total_steps: int) -> None:
        """Draw these points; the axis ends at ``total_steps``."""
        self.set_class(not points, "-empty")
        if points == self._shown:
            return
        self._shown = points
        plot = self._plot.plt
        plot.clear_figure()
        if points:
            steps = [p.step for p in points]
            plot.plot(steps, [p.train_loss for p in points], marker="braille", color=TRAIN_COLOUR, label="train")
            valid = _validations(points)
            if valid:
                plot.scatter(
                    [s for s, _ in valid], [v for _, v in valid], marker="◆", color=(255, 176, 84), label="valid"
                )
            plot.xlim(0, max(total_steps, steps[-1]))
            plot.xfrequency(6)
            plot.yfrequency(4)
        self._plot.refresh()


def _validations(points: tuple[Progress, ...]) -> list[tuple[int, float]]:
    """The steps at which the validation loss changed: reports between validations repeat the last one."""
    found: list[tuple[int, float]] = []
    for point in points:
        if point.valid_loss is not None and (not found or found[-1][1] != point.valid_loss):
            found.append((point.step, point.valid_loss))
    return found
