"""Text that is drawn again only when it says something else."""

from __future__ import annotations

from textual.visual import VisualType
from textual.widgets import Static


class Words(Static):
    """A static whose update costs nothing if the content is the same: a layout of the screen is not cheap.

    Args:
        id: widget id.
        classes: CSS classes.
    """

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__("", id=id, classes=classes, markup=False)
        self._said: VisualType = ""

    def update(self, content: VisualType = "", *, layout: bool = True) -> None:
        """Say this."""
        if content != self._said:
            self._said = content
            super().update(content, layout=layout)
