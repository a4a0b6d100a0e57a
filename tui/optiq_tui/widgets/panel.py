"""A titled frame, which the screens are made of."""

from __future__ import annotations

from textual.containers import Vertical
from textual.content import Content
from textual.widget import Widget


class Panel(Vertical):
    """A frame around widgets.

    Args:
        title: on the frame.
        children: inside, from the top.
        id: widget id.
    """

    def __init__(self, title: str, *children: Widget, id: str) -> None:
        super().__init__(*children, id=id, classes="panel")
        self._title = title
        self.border_title = title

    def count(self, text: str) -> None:
        """Say something beside the title."""
        self.border_title = Content.assemble(self._title, (f" {text}", "dim")) if text else self._title
