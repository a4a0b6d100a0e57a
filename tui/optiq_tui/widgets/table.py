"""A table of any number of rows that draws only those in sight."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from rich.style import Style
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.cache import LRUCache
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from optiq_tui.widgets.columns import GAP, Column, fit

R = TypeVar("R")

KEPT_LINES = 1000
PARTS = ("header", "cursor", "hover", "empty")


@dataclass(frozen=True)
class _Look:
    """Columns in sight with their widths, and styles."""

    columns: tuple[tuple[int, int], ...]
    base: Style
    header: Style
    cursor: Style
    hover: Style
    empty: Style


class Table(ScrollView, Generic[R], can_focus=True):
    """Rows by key, with a cursor that stays on its row when the list changes.

    Args:
        columns: from left to right.
        key: what tells rows apart.
        id: widget id.
        log: new rows come in at the top; a cursor that is there stays there.
        empty: what to say where there is no row.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"table--{part}" for part in PARTS}
    HELP = (
        "A table. The arrow keys move the cursor, page up and page down go by pages, `s` sorts by the next column and "
        "`S` turns the order round; a click on a heading does both. What can be done to the row under the cursor is "
        "in the last line."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False, id="table.up", tooltip="One row up"),
        Binding("down,j", "move(1)", "Down", show=False, id="table.down", tooltip="One row down"),
        Binding("pageup", "page(-1)", "Page up", show=False, id="table.page_up", tooltip="One page up"),
        Binding("pagedown", "page(1)", "Page down", show=False, id="table.page_down", tooltip="One page down"),
        Binding("home", "jump(0)", "Top", show=False, id="table.top", tooltip="First row"),
        Binding("end", "jump(-1)", "Bottom", show=False, id="table.bottom", tooltip="Last row"),
        Binding("s", "sort(1)", "Sort", show=False, id="table.sort", tooltip="Sort by the next column"),
        Binding("S", "turn", "Order", show=False, id="table.order", tooltip="Turn the order round"),
    ]

    class Highlighted(Message):
        """Another row is under the cursor, or the one that is there has changed.

        Attributes:
            table: which table.
            row: the row; None if there is none.
        """

        def __init__(self, table: Table[Any], row: object | None) -> None:
            super().__init__()
            self.table = table
            self.row = row

        @property
        def control(self) -> Table[Any]:
            """The table, for ``on(…, selector)``."""
            return self.table

    hovered: reactive[int] = reactive(-1)

    def __init__(
        self,
        columns: Sequence[Column[R]],
        key: Callable[[R], str],
        *,
        id: str,
        log: bool = False,
        empty: str | Text = "",
    ) -> None:
        super().__init__(id=id)
        self.columns = tuple(columns)
        self.empty_text = empty if isinstance(empty, Text) else Text(empty)
        self._key = key
        self._log = log
        self._given: Sequence[R] = ()
        self._rows: Sequence[R] = ()
        self._index: dict[str, int] = {}
        self._cursor = 0
        self._sorted_by: int | None = None
        self._descending = False
        # What each line of the viewport shows, and lines that were made before: rows move more than they change.
        self._drawn: dict[int, Hashable] = {}
        self._strips: LRUCache[Hashable, Strip] = LRUCache(KEPT_LINES)

    # Rows

    @property
    def rows(self) -> Sequence[R]:
        """The rows in the order that they are shown in."""
        return self._rows

    @property
    def row_count(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    @property
    def selected(self) -> R | None:
        """The row under the cursor."""
        return self._rows[self._cursor] if 0 <= self._cursor < len(self._rows) else None

    def show(self, rows: Sequence[R]) -> None:
        """Show these rows; the cursor stays on its row if that is still there."""
        at_top = self._log and self._cursor == 0
        before, follows = self.selected, False
        self._given = rows
        self._order()
        if before is not None and not at_top:
            found = self._index.get(self._key(before))
            if found is not None and found != self._cursor:
                # At the top, new rows above come into sight; further down, what is read stays in its place.
                if self.scroll_offset.y:
                    self.scroll_to(y=self.scroll_offset.y + found - self._cursor, animate=False)
                else:
                    follows = True
                self._cursor = found
        self._cursor = max(0, min(self._cursor, len(rows) - 1))
        self._resized()
        if follows:
            self._show_cursor()
        if self.selected is not before:
            self.post_message(self.Highlighted(self, self.selected))

    def select(self, key: str) -> None:
        """Put the cursor on a row, if there is one of this key."""
        if key in self._index:
            self._move_to(self._index[key])

    def sort_by(self, title: str | None, *, descending: bool = False) -> None:
        """Sort by a column from now on; None keeps the order that the rows are given in."""
        titles = [column.title for column in self.columns]
        self._sorted_by = None if title is None else titles.index(title)
        self._descending = descending
        self.show(self._given)

    def _order(self) -> None:
        rows = self._given
        sort = None if self._sorted_by is None else self.columns[self._sorted_by].sort
        self._rows = sorted(rows, key=sort, reverse=self._descending) if sort else rows
        self._index = {self._key(row): index for index, row in enumerate(self._rows)}

    def _resized(self) -> None:
        size = Size(self.size.width, len(self._rows) + 1)
        if size != self.virtual_size:
            self.virtual_size = size
        if not self._rows or not self._drawn:
            self.refresh()
            return
        look = self._look()
        for y in range(self.size.height):
            if self._line_at(y, look)[0] != self._drawn.get(y):
                self._refresh_line(y)

    def _refresh_line(self, y: int) -> None:
        self.refresh(Region(0, y, self.size.width, 1))

    # Drawing

    def on_resize(self) -> None:
        """Lay the columns out again."""
        self._drawn.clear()
        self._resized()
        self._show_cursor()

    def notify_style_update(self) -> None:
        """Draw everything again: the colours have changed."""
        self._drawn.clear()
        self._strips.clear()
        super().notify_style_update()

    def widths(self) -> list[tuple[int, int]]:
        """Indices of the columns that fit, with their widths."""
        return fit(self.columns, self.scrollable_content_region.width, marked=self._sorted_by)

    def render_line(self, y: int) -> Strip:
        """One line of the viewport: the heading, then rows from the scroll offset on."""
        shown, cells, style = self._line_at(y, self._look())
        self._drawn[y] = shown
        width = self.size.width
        if cells is None:
            if not self._rows and y:
                return self._empty_line(y, width, style)
            return Strip.blank(width, style)
        if (strip := self._strips.get(shown)) is None:
            strip = self._strips[shown] = self._line(cells, width, style)
        return strip

    def _look(self) -> _Look:
        base = self.rich_style
        header, cursor, hover, empty = (base + self.get_component_rich_style(f"table--{part}") for part in PARTS)
        return _Look(tuple(self.widths()), base, header, cursor, hover, empty)

    def _line_at(self, y: int, look: _Look) -> tuple[Hashable, Sequence[Text] | None, Style]:
        """What tells a line of the viewport from others, its cells if it has any, and its style."""
        index = y - 1 + self.scroll_offset.y
        if not self._rows:
            style = look.empty if y else look.base
            return (self.empty_text.plain, y, style), None, style
        if y and index >= len(self._rows):
            return look.base, None, look.base
        if y == 0:
            cells, style = [self._title(i) for i, _ in look.columns], look.header
        else:
            cells = [_as_text(self.columns[i].cell(self._rows[index])) for i, _ in look.columns]
            style = look.cursor if index == self._cursor else look.hover if index == self.hovered else look.base
        told = tuple((cell.plain, str(cell.style), tuple(cell.spans)) for cell in cells)
        return (told, look.columns, self.size.width, style), cells, style

    def _title(self, i: int) -> Text:
        mark = "" if i != self._sorted_by else "▾" if self._descending else "▴"
        return Text(self.columns[i].title + mark)

    def _empty_line(self, y: int, width: int, style: Style) -> Strip:
        lines = self.empty_text.wrap(self.app.console, max(1, width - 2))
        if y - 1 >= len(lines):
            return Strip.blank(width, style)
        line = Text(" ").append_text(lines[y - 1])
        return Strip(list(line.render(self.app.console)), line.cell_len).adjust_cell_length(width).apply_style(style)

    def _line(self, cells: Sequence[Text], width: int, style: Style) -> Strip:
        line = Text()
        for number, ((i, room), cell) in enumerate(zip(self.widths(), cells, strict=True)):
            if number:
                line.append(" " * GAP)
            fitted = cell.copy()
            fitted.truncate(room, overflow="ellipsis")
            padding = " " * (room - fitted.cell_len)
            line.append_text(Text(padding) + fitted if self.columns[i].right else fitted + Text(padding))
        line.end = ""
        segments = list(line.render(self.app.console))
        return Strip(segments, line.cell_len).adjust_cell_length(width).apply_style(style)

    # Cursor

    def action_move(self, step: int) -> None:
        """Move the cursor by rows."""
        self._move_to(self._cursor + step)

    def action_page(self, step: int) -> None:
        """Move the cursor by pages."""
        self._move_to(self._cursor + step * max(1, self.size.height - 2))

    def action_jump(self, index: int) -> None:
        """Go to the first row, or with -1 to the last."""
        self._move_to(index if index >= 0 else len(self._rows) - 1)

    def action_sort(self, step: int) -> None:
        """Sort by the next column that can be sorted by; after the last one, as given."""
        can: list[int | None] = [None, *(i for i, _ in self.widths() if self.columns[i].sort is not None)]
        at = can.index(self._sorted_by) if self._sorted_by in can else 0
        self._sorted_by, self._descending = can[(at + step) % len(can)], False
        self.show(self._given)

    def action_turn(self) -> None:
        """Turn the order round."""
        self._descending = not self._descending
        self.show(self._given)

    def _move_to(self, index: int) -> None:
        if not self._rows:
            return
        before, self._cursor = self._cursor, max(0, min(index, len(self._rows) - 1))
        self._show_cursor()
        if before != self._cursor:
            for index_ in (before, self._cursor):
                self._refresh_line(index_ + 1 - self.scroll_offset.y)
            self.post_message(self.Highlighted(self, self.selected))

    def _show_cursor(self) -> None:
        if self._rows and self.size.height > 1:
            top, height = self.scroll_offset.y, self.size.height - 1
            if self._cursor < top:
                self.scroll_to(y=self._cursor, animate=False)
            elif self._cursor >= top + height:
                self.scroll_to(y=self._cursor - height + 1, animate=False)

    # Mouse

    def on_click(self, event: events.Click) -> None:
        """A row is selected, a heading sorts."""
        if event.y == 0:
            self._sort_at(event.x)
        elif (row := self._row_at(event.y)) >= 0:
            self._move_to(row)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Light up the row under the pointer."""
        self.hovered = self._row_at(event.y)

    def on_leave(self) -> None:
        """No row is under the pointer."""
        self.hovered = -1

    def _row_at(self, y: int) -> int:
        """Index of the row on a line of the viewport; -1 if there is none."""
        index = y - 1 + self.scroll_offset.y
        return index if y > 0 and index < len(self._rows) else -1

    def _sort_at(self, x: int) -> None:
        left = 0
        for i, width in self.widths():
            if left <= x < left + width + GAP and self.columns[i].sort is not None:
                self._descending = not self._descending if self._sorted_by == i else False
                self._sorted_by = i
                self.show(self._given)
            left += width + GAP

    def watch_hovered(self, before: int, now: int) -> None:
        """Draw both rows again."""
        for index in (before, now):
            if index >= 0:
                self._refresh_line(index + 1 - self.scroll_offset.y)


def _as_text(cell: Text | str) -> Text:
    """Plain text is wrapped lest it be read as markup."""
    return cell if isinstance(cell, Text) else Text(cell)
