"""Line and bar charts in the theme's colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual_plot import HiResMode, LegendLocation, PlotWidget

from optiq_tui.widgets.tones import Tones

BAR_TICKS = 4
LINE_TONES = ("primary", "warning", "success", "accent", "error", "secondary")


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        label: in the legend; empty for none.
        x, y: its points.
        tone: name of a theme colour.
        points: draw marks instead of a line.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    tone: str
    points: bool = False


class Chart(PlotWidget, inherit_bindings=False):
    """A plot that can be zoomed with the mouse wheel or the keys, and dragged."""

    HELP = "A chart. `+` and `-` zoom, the arrow keys move, `0` shows all of it; the mouse wheel and dragging do too."
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("plus,equals_sign", "zoom_in", "Zoom in", id="chart.zoom_in", tooltip="Show less, larger"),
        Binding("minus", "zoom_out", "Zoom out", id="chart.zoom_out", tooltip="Show more, smaller"),
        Binding("0", "reset_scales", "All of it", id="chart.reset", tooltip="Show the whole chart"),
        Binding("left", "pan_left", "Left", show=False, id="chart.left", tooltip="Move left"),
        Binding("right", "pan_right", "Right", show=False, id="chart.right", tooltip="Move right"),
        Binding("up", "pan_up", "Up", show=False, id="chart.up", tooltip="Move up"),
        Binding("down", "pan_down", "Down", show=False, id="chart.down", tooltip="Move down"),
    ]

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._drawn: object = None

    def on_mount(self) -> None:
        """Leave the room to the plot."""
        self.margin_top, self.margin_bottom, self.margin_left = 0, 2, 7

    def show_curves(self, curves: Sequence[Curve], *, x_end: float = 0.0) -> None:
        """Draw these; ``x_end`` is how far the axis goes at least."""
        if self._same((tuple((c.label, c.tone, len(c.x), c.x[-1:], c.y[-1:]) for c in curves), x_end)):
            return
        tones = Tones.of(self)
        self.clear()
        for curve in curves:
            style = tones.colour(curve.tone)
            if curve.points:
                self.scatter(curve.x, curve.y, marker="◆", marker_style=style, label=curve.label or None)
            else:
                self.plot(curve.x, curve.y, line_style=style, hires_mode=HiResMode.BRAILLE, label=curve.label or None)
        xs = [x for curve in curves for x in curve.x]
        if xs:
            self.set_xlimits(0, max(x_end, *xs))
        self.show_legend(LegendLocation.TOPRIGHT, is_visible=any(curve.label for curve in curves))

    def show_bars(self, values: Mapping[str, float], *, tone: str = "primary") -> None:
        """One bar for each value, in order; the axis counts them."""
        if self._same(tuple(values.values())):
            return
        self.clear()
        if values:
            places = list(range(len(values)))
            self.bar(places, list(values.values()), bar_style=Tones.of(self).colour(tone), width=0.8)
            self.set_xlimits(-0.5, len(places) - 0.5)
            most = max(values.values())
            self.set_ylimits(0, most * 1.1)
            step = max(1, math.ceil(most / BAR_TICKS))
            self.set_yticks(list(range(0, math.floor(most) + 1, step)))

    def forget(self) -> None:
        """Draw again at the next occasion, whatever was drawn: the colours have changed."""
        self._drawn = None

    def _same(self, wanted: object) -> bool:
        same, self._drawn = wanted == self._drawn, wanted
        return same
