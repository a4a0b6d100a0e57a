"""Which pages each row of a batch uses in each module: index arrays, built once per change of the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from .pages import PageRun


@dataclass(frozen=True)
class RowUse:
    """What one row uses of one module.

    Attributes:
        run: its pages.
        factor: multiplies what the adapter adds.
        gain: [out], DoRA's ``g - 1``; None for LoRA.
    """

    run: PageRun
    factor: float
    gain: mx.array | None


@dataclass(frozen=True)
class ModulePlan:
    """How one module computes what the rows of a batch add. ``items`` are (row, page) pairs.

    Attributes:
        uses: what each row uses; None for a bare row.
        row_of: [items] uint32.
        page_of: [items] uint32.
        weights: [rows, items], sums the items of each row with its factor; None if item i is row i with a factor of 1.
        uniform: the one run and factor of all rows, if they share them.
        gain: [rows, 1, out], what the base's product is multiplied by; None without DoRA.
    """

    uses: tuple[RowUse | None, ...]
    row_of: mx.array
    page_of: mx.array
    weights: mx.array | None
    uniform: tuple[PageRun, float] | None
    gain: mx.array | None


class ActiveRows:
    """Which adapter each row of a forward pass uses. Pages that it refers to stay as they are while it lives.

    Args:
        slots: a slot per row, 0 for the bare base.
        factors: a factor per row.
        lookup: module path and slot to the pages and the gain there, None if the adapter leaves the module alone.
        dtype: type in which the bank computes.
    """

    def __init__(
        self,
        slots: Sequence[int],
        factors: Sequence[float],
        lookup: Callable[[str, int], tuple[PageRun, mx.array | None] | None],
        dtype: mx.Dtype,
    ) -> None:
        self.slots = tuple(slots)
        self._factors = tuple(factors)
        self._lookup = lookup
        self._dtype = dtype
        self._plans: dict[str, ModulePlan | None] = {}
        # Modules with the same pages, which most are, share their arrays.
        self._arrays: dict[object, tuple[mx.array, mx.array, mx.array | None]] = {}

    def plan(self, path: str) -> ModulePlan | None:
        """Return what a module has to add; None if no row's adapter touches it."""
        if path not in self._plans:
            self._plans[path] = self._build(path)
        return self._plans[path]

    def _build(self, path: str) -> ModulePlan | None:
        uses = []
        for slot, factor in zip(self.slots, self._factors, strict=True):
            found = self._lookup(path, slot) if slot else None
            uses.append(RowUse(found[0], factor, found[1]) if found else None)
        if not any(uses):
            return None
        key = tuple((u.run.first, u.run.count, u.factor) if u else None for u in uses)
        if key not in self._arrays:
            self._arrays[key] = self._index(uses)
        row_of, page_of, weights = self._arrays[key]
        first = uses[0]
        return ModulePlan(
            uses=tuple(uses),
            row_of=row_of,
            page_of=page_of,
            weights=weights,
            uniform=(first.run, first.factor) if first and len(set(key)) == 1 else None,
            gain=self._gain(uses),
        )

    def _index(self, uses: Sequence[RowUse | None]) -> tuple[mx.array, mx.array, mx.array | None]:
        items = [(row, page, use.factor) for row, use in enumerate(uses) if use for page in _pages(use.run)]
        rows = np.array([row for row, _, _ in items], np.uint32)
        pages = np.array([page for _, page, _ in items], np.uint32)
        factors = np.array([factor for _, _, factor in items], np.float32)
        weights = None
        if not np.array_equal(rows, np.arange(len(uses))) or (factors != 1).any():
            matrix = np.zeros((len(uses), len(items)), np.float32)
            matrix[rows, np.arange(len(items))] = factors
            weights = mx.array(matrix).astype(self._dtype)
        return mx.array(rows), mx.array(pages), weights

    def _gain(self, uses: Sequence[RowUse | None]) -> mx.array | None:
        width = next((use.gain.shape[0] for use in uses if use and use.gain is not None), None)
        if width is None:
            return None
        one = mx.ones((width,), self._dtype)
        rows = [one if use is None or use.gain is None else 1 + use.factor * use.gain for use in uses]
        return mx.stack(rows)[:, None, :]


def _pages(run: PageRun) -> range:
    return range(run.first, run.first + run.count)
