"""A table that follows a changing list without losing the cursor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.text import Text
from textual.widgets import DataTable

Cells = Sequence[Text | str]


class LiveTable(DataTable[Text]):
    """Rows by key. :meth:`show` changes only the cells that differ.

    Args:
        columns: headings; one that begins with ``>`` is a column of numbers, aligned to the right.
        id: widget id.
        log: new rows come in at the top; a cursor that is there stays there.
    """

    def __init__(self, columns: Sequence[str], *, id: str, log: bool = False) -> None:
        super().__init__(id=id, cursor_type="row", zebra_stripes=False, cell_padding=1)
        self._headings = [c.removeprefix(">") for c in columns]
        self._numeric = {i for i, c in enumerate(columns) if c.startswith(">")}
        self._log = log
        self._rows: dict[str, list[Text]] = {}

    def on_mount(self) -> None:
        """Add the columns. Their widths are ours: a DataTable's own miss rows that are replaced quickly."""
        for heading in self._headings:
            self.add_column(heading, key=heading, width=len(heading))

    @property
    def selected_key(self) -> str:
        """Key of the row under the cursor; empty if the table is."""
        keys = list(self._rows)
        return keys[self.cursor_row] if 0 <= self.cursor_row < len(keys) else ""

    def show(self, rows: Mapping[str, Cells]) -> None:
        """Show these rows in this order."""
        aligned = self._aligned(rows)
        for i, column in enumerate(self.ordered_columns):
            column.width = max([len(self._headings[i]), *(cells[i].cell_len for cells in aligned.values())])
        if list(aligned) == list(self._rows):
            for key, cells in aligned.items():
                self._update(key, cells)
        else:
            self._rebuild(aligned)
        self._rows = aligned

    def _aligned(self, rows: Mapping[str, Cells]) -> dict[str, list[Text]]:
        """The rows as a DataTable needs them: numbers padded, and plain text wrapped lest it be read as markup."""
        widths = {i: max([len(self._headings[i]), *(len(r[i]) for r in rows.values())]) for i in self._numeric}
        return {
            key: [
                Text(str(cell).rjust(widths[i])) if i in widths else cell if isinstance(cell, Text) else Text(cell)
                for i, cell in enumerate(cells)
            ]
            for key, cells in rows.items()
        }

    def _update(self, key: str, cells: list[Text]) -> None:
        for heading, old, new in zip(self._headings, self._rows[key], cells, strict=True):
            if old != new:
                self.update_cell(key, heading, new, update_width=True)

    def _rebuild(self, rows: dict[str, list[Text]]) -> None:
        at_top = self._log and self.cursor_row <= 0
        selected, offset = self.selected_key, self.scroll_offset
        with self.prevent(DataTable.RowHighlighted):
            self.clear()
            for key, cells in rows.items():
                self.add_row(*cells, key=key)
            keys = list(rows)
            if selected in keys and not at_top:
                self.move_cursor(row=keys.index(selected), animate=False, scroll=False)
        self.scroll_to(offset.x, offset.y, animate=False)
