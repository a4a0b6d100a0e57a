"""The table draws what is in sight and keeps its cursor, however many rows there are."""

from __future__ import annotations

import pytest
from textual.app import App, ComposeResult
from textual.strip import Strip

from optiq_tui.widgets.columns import Column
from optiq_tui.widgets.table import Table

Row = tuple[str, int]


class Host(App[None]):
    """One table."""

    drawn = 0

    def cell(self, row: Row) -> str:
        self.drawn += 1
        return row[0]

    def compose(self) -> ComposeResult:
        yield Table[Row](
            (
                Column("name", self.cell, 8, flex=1, sort=lambda r: r[0]),
                Column("number", lambda r: str(r[1]), 6, right=True, sort=lambda r: r[1]),
                Column("extra", lambda r: "x" * 20, 20, drop=1),
            ),
            lambda r: r[0],
            id="table",
        )


def lines(table: Table[Row]) -> list[str]:
    """The text of the lines in sight."""
    return [table.render_line(y).text.rstrip() for y in range(table.size.height)]


async def test_only_rows_in_sight_are_drawn() -> None:
    app = Host()
    async with app.run_test(size=(50, 10)) as pilot:
        table: Table[Row] = app.query_one(Table)
        table.show([(f"row-{n:05d}", n) for n in range(50_000)])
        await pilot.pause()
        assert app.drawn < 100
        assert table.row_count == 50_000
        table.focus()
        await pilot.press("end")
        await pilot.pause()
        assert table.selected == ("row-49999", 49_999)
        assert "row-49999" in lines(table)[-1]
        assert app.drawn < 300


async def test_the_cursor_stays_on_its_row() -> None:
    app = Host()
    async with app.run_test(size=(40, 10)) as pilot:
        table: Table[Row] = app.query_one(Table)
        table.show([("b", 1), ("d", 2)])
        table.focus()
        await pilot.press("down")
        table.show([("a", 3), ("b", 1), ("c", 4), ("d", 2)])
        assert table.selected == ("d", 2)
        table.show([("a", 3), ("b", 1)])
        assert table.selected == ("b", 1)
        table.show([])
        assert table.selected is None


async def test_sorts_by_key_and_by_click() -> None:
    app = Host()
    async with app.run_test(size=(40, 10)) as pilot:
        table: Table[Row] = app.query_one(Table)
        table.show([("b", 1), ("c", 3), ("a", 2)])
        table.focus()
        await pilot.press("s")
        assert [row[0] for row in table.rows] == ["a", "b", "c"]
        await pilot.press("s", "S")
        assert [row[1] for row in table.rows] == [3, 2, 1]
        assert "number▾" in lines(table)[0]
        await pilot.click(table, offset=(1, 0))
        assert [row[0] for row in table.rows] == ["a", "b", "c"]
        await pilot.click(table, offset=(1, 3))
        assert table.selected == ("c", 3)


async def test_columns_that_do_not_fit_are_dropped_whole() -> None:
    app = Host()
    async with app.run_test(size=(60, 10)) as pilot:
        table: Table[Row] = app.query_one(Table)
        table.show([("b", 1)])
        assert "extra" in lines(table)[0]
        await pilot.resize_terminal(30, 10)
        await pilot.pause()
        assert "extra" not in lines(table)[0]
        assert lines(table)[1].endswith("1")


async def test_only_lines_that_changed_are_painted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Host()
    async with app.run_test(size=(40, 20)) as pilot:
        table: Table[Row] = app.query_one(Table)
        rows = [(f"row-{n:03d}", n) for n in range(100)]
        table.show(rows)
        table.focus()
        await pilot.pause()
        painted: list[int] = []
        paint = table.render_line

        def counted(y: int) -> Strip:
            painted.append(y)
            return paint(y)

        monkeypatch.setattr(table, "render_line", counted)
        table.show([*rows[:4], ("row-004", 777), *rows[5:]])
        await pilot.pause()
        assert painted == [5] and "777" in lines(table)[5]
        painted.clear()
        await pilot.press("down")
        await pilot.pause()
        assert painted == [1, 2]


async def test_at_the_top_new_rows_come_into_sight_and_further_down_nothing_moves() -> None:
    app = Host()
    async with app.run_test(size=(40, 10)) as pilot:
        table: Table[Row] = app.query_one(Table)
        table.show([(f"row-{n:03d}", n) for n in range(50)])
        table.focus()
        await pilot.pause()
        table.show([("a-new", 0), *table.rows])
        await pilot.pause()
        assert "a-new" in lines(table)[1] and table.selected == ("row-000", 0)
        await pilot.press("end", "up")
        await pilot.pause()
        before = lines(table)
        table.show([("a-newer", 0), *table.rows])
        await pilot.pause()
        assert lines(table) == before and table.selected == ("row-048", 48)
