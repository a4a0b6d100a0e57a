"""A number that is set with the arrow keys or the mouse."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from optiq_tui.widgets.tones import Tones

STEP = 0.05


class Slider(Widget, can_focus=True):
    """A value between 0 and ``most``, drawn as a bar with its number.

    Args:
        label: before the bar.
        value: to begin with.
        most: right end of the bar.
        id: widget id.
    """

    HELP = "The weight of an adapter in the blend. The arrow keys change it, so does a click; 0 leaves it out."
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "step(-1)", "Less", id="slider.less", tooltip="Less of it"),
        Binding("right", "step(1)", "More", id="slider.more", tooltip="More of it"),
        Binding("home", "put(0)", "None", show=False, id="slider.none", tooltip="Leave it out"),
        Binding("end", "put(1)", "All", show=False, id="slider.all", tooltip="All of it: weight 1"),
    ]

    class Changed(Message):
        """The value has changed."""

        def __init__(self, slider: Slider) -> None:
            super().__init__()
            self.slider = slider

    value: reactive[float] = reactive(0.0)

    def __init__(self, label: str, value: float, *, most: float = 1.5, id: str) -> None:
        super().__init__(id=id)
        self.label = label
        self._most = most
        self.set_reactive(Slider.value, value)

    def render(self) -> Text:
        """Label, bar and number."""
        width = self._width
        filled = round(self.value / self._most * width)
        tones = Tones.of(self)
        style = tones.style("primary" if self.value else "text-muted")
        number = f" {self.value:.2f}"
        return Text.assemble(
            (f"{self.label:<{self._label}.{self._label}} ", "bold" if self.has_focus else ""),
            ("━" * filled, style),
            ("●", style),
            ("─" * (width - filled), "dim"),
            (number, "bold" if self.value else "dim"),
        )

    @property
    def _label(self) -> int:
        return max(6, min(16, self.size.width // 3))

    @property
    def _width(self) -> int:
        return max(4, self.size.width - self._label - 7)

    def action_step(self, steps: int) -> None:
        """Change by steps of 0.05."""
        self._set(self.value + steps * STEP)

    def action_put(self, value: float) -> None:
        """Set it."""
        self._set(value)

    def on_click(self, event: events.Click) -> None:
        """Set what the pointer is on."""
        self._set((event.x - self._label - 1) / self._width * self._most)

    def _set(self, value: float) -> None:
        rounded = round(max(0.0, min(self._most, round(value / STEP) * STEP)), 2)
        if rounded != self.value:
            self.value = rounded
            self.post_message(self.Changed(self))
