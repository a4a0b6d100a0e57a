"""What the panels share: a titled frame, a table, and a text where there is nothing to show."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Static

from optiq_tui.widgets.live_table import Cells, LiveTable
from optiq_tui.widgets.tones import Tones


class Panel(Vertical):
    """A frame around a table.

    Args:
        name: id of the panel; the table's is ``{name}-table``.
        title: on the frame.
        columns: headings of the table.
        log: as in LiveTable.
    """

    def __init__(self, name: str, title: str, columns: Sequence[str], *, log: bool = False) -> None:
        super().__init__(id=name, classes="panel")
        self._title = title
        self.border_title = title
        self.table = LiveTable(columns, id=f"{name}-table", log=log)
        self.empty = Static("", classes="empty")

    def compose(self) -> ComposeResult:
        """Table and empty text; one of them is shown."""
        yield self.table
        yield self.empty

    @property
    def tones(self) -> Tones:
        """Colours of the current theme."""
        return Tones(self.app.theme_variables)

    def show_rows(self, rows: dict[str, Cells], *, count: str = "") -> None:
        """Show the rows, or the empty text if there are none; ``count`` goes beside the title."""
        self.table.show(rows)
        self.set_class(not rows, "-empty")
        self.border_title = f"{self._title} [dim]{count}[/dim]" if count else self._title

    def focus_table(self) -> None:
        """Give the keys to the table."""
        self.table.focus()
