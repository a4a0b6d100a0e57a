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
        """Say this; the screen is laid out again only if it takes more room, or less."""
        if content != self._said:
            self._said = content
            super().update(content, layout=layout and not self._fixed)
            if self._fixed and layout and self._height_of_content() != self.content_size.height:
                self.refresh(layout=True)

    @property
    def _fixed(self) -> bool:
        """Whether the content can change no more than the height."""
        return self.is_mounted and not (self.styles.width is not None and self.styles.width.is_auto)

    def _height_of_content(self) -> int:
        height = self.styles.height
        if height is not None and not height.is_auto:
            return self.content_size.height
        return self.get_content_height(self.container_size, self.app.size, self.content_size.width)
