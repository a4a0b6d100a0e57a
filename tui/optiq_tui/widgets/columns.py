"""Columns of a table, and which of them fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rich.text import Text

R = TypeVar("R")

GAP = 2


@dataclass(frozen=True)
class Column(Generic[R]):
    """One column.

    Attributes:
        title: heading.
        cell: what a row shows.
        width: cells that it takes; the least if ``flex``.
        flex: share of what is left over; 0 for none.
        right: aligned to the right.
        drop: where the columns do not fit, the highest go first; 0 stays.
        sort: what a row is sorted by; None if it cannot be.
    """

    title: str
    cell: Callable[[R], Text | str]
    width: int
    flex: int = 0
    right: bool = False
    drop: int = 0
    sort: Callable[[R], Any] | None = None


def fit(columns: Sequence[Column[Any]], room: int, *, marked: int | None = None) -> list[tuple[int, int]]:
    """Indices of the columns that fit into `room` cells, with their widths; what is left over is shared out.

    Args:
        marked: the column whose title has a mark behind it.
    """

    def least(i: int) -> int:
        return max(columns[i].width, len(columns[i].title) + 1) if i == marked else columns[i].width

    def taken() -> int:
        return sum(map(least, shown)) + GAP * (len(shown) - 1)

    shown = list(range(len(columns)))
    while taken() > max(0, room) and any(columns[i].drop for i in shown):
        shown.remove(max(shown, key=lambda i: columns[i].drop))
    flex = sum(columns[i].flex for i in shown)
    left = max(0, room - taken())
    return [(i, least(i) + (left * columns[i].flex // flex if flex else 0)) for i in shown]
