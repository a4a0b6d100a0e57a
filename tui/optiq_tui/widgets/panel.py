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
        self._told = self._noted = ""
        self.border_title = title

    def count(self, text: str) -> None:
        """Say something beside the title; a frame is drawn again, with all that is in it, only if that is new."""
        if text != self._told:
            self._told = text
            self.border_title = Content.assemble(self._title, (f" {text}", "dim")) if text else self._title

    def footnote(self, text: str) -> None:
        """Say something on the lower edge."""
        if text != self._noted:
            self._noted = text
            self.border_subtitle = Content(text)

    def rename(self, title: str) -> None:
        """Say whose panel it is in place of the title."""
        if title != self._told:
            self._told = title
            self.border_title = Content(title)
