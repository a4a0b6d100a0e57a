"""A figure against its ceiling, on one line."""

from __future__ import annotations

from collections.abc import Callable

from rich.text import Text

from optiq_client import humanize
from optiq_tui.widgets.tones import Tones
from optiq_tui.widgets.words import Words

HIGH, TOO_HIGH = 0.75, 0.9


def bar(share: float, width: int, style: str) -> Text:
    """A bar that is filled to ``share``, in [0, 1]."""
    filled = min(width, max(0, round(share * width)))
    if share > 0 and filled == 0:
        filled = 1
    return Text.assemble(("━" * filled, style), ("─" * (width - filled), "dim"))


def of(value: int, ceiling: int, shown: Callable[[int], str] = humanize.size) -> str:
    """``1.2 of 6.0 GiB``, ``9 MiB of 1.0 GiB``; the value alone where there is no ceiling."""
    text, limit = shown(value), shown(ceiling)
    if not ceiling:
        return text
    number, _, unit = text.partition(" ")
    return f"{number if unit and unit == limit.partition(' ')[2] else text} of {limit}"


class Gauge(Words):
    """Label, bar, value and ceiling. The bar turns to warning and error as it fills.

    Args:
        label: what is measured.
        id: widget id.
    """

    LABEL_WIDTH = 9

    def __init__(self, label: str, *, id: str) -> None:
        super().__init__(id=id, classes="gauge")
        self._label = label
        self._shown: tuple[float, float, str] = (0.0, 0.0, "")

    def show(self, value: float, ceiling: float, text: str) -> None:
        """Show ``value`` of ``ceiling`` (0 for none), described by ``text``."""
        self._shown = value, ceiling, text
        self._draw()

    def on_resize(self) -> None:
        """As much bar as there is room for."""
        self._draw()

    def _draw(self) -> None:
        value, ceiling, text = self._shown
        share = value / ceiling if ceiling else 0.0
        tone = "error" if share > TOO_HIGH else "warning" if share > HIGH else "success"
        line = Text(f"{self._label:<{self.LABEL_WIDTH}.{self.LABEL_WIDTH}} ", style="dim", no_wrap=True)
        room = self.size.width - line.cell_len - len(text) - 1
        if ceiling and room >= 4:
            line.append_text(bar(share, min(room, 40), Tones.of(self).style(tone)))
            line.append(" ")
        line.append(text, "bold" if ceiling else "")
        self.update(line)
