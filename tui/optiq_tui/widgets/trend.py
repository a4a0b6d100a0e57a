"""A figure and how it got there: a sparkline with its present value in the frame."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Sparkline


class Trend(Vertical):
    """A sparkline in a frame.

    Args:
        title: what is measured.
        id: widget id.
    """

    def __init__(self, title: str, *, id: str) -> None:
        super().__init__(id=id, classes="panel trend")
        self._title = title
        self.border_title = title
        self._line = Sparkline([0.0], summary_function=max)
        self._samples: Sequence[float] = ()

    def compose(self) -> ComposeResult:
        """The line alone."""
        yield self._line

    def show(self, samples: Sequence[float], now: str) -> None:
        """Show these samples, oldest first, and the present value."""
        self._samples = samples
        self.border_title = Content.assemble(self._title, " ", (now, "bold"))
        self._draw()

    def on_resize(self) -> None:
        """One column for each sample."""
        self._draw()

    def _draw(self) -> None:
        width = max(2, self.size.width)
        kept = [float(sample) for sample in self._samples[-width:]]
        self._line.data = [0.0] * (width - len(kept)) + kept
        self.border_subtitle = f"peak {max(kept, default=0.0):.3g}" if any(kept) else ""
