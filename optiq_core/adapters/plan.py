"""Which pages each row of a batch uses in each module: index arrays, built once per change of the batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from .pages import PAGE_RANK, ModulePages, ModuleRun

# Segments times rows of the widest, as a multiple of the rows, up to which products by segments are worth it.
_SKEW = 4


@dataclass(frozen=True)
class RowUse:
    """What one row uses of one module.

    Attributes:
        run: its pages.
        factor: multiplies what the adapter adds.
        gain: [out], DoRA's ``g - 1``; None for LoRA.
    """

    run: ModuleRun
    factor: float
    gain: mx.array | None


@dataclass(frozen=True)
class ModulePlan:
    """How one module computes what the rows of a batch add. ``items`` are (row, page) pairs.

    Attributes:
        uses: what each row uses; None for a bare row.
        row_of: [items] uint32.
        a_of, b_of: pages of ``A`` and ``B``, [items] uint32.
        weights: [rows, items], sums the items of each row with its factor; None if item i is row i with a factor of 1.
        uniform: the one run of all rows, if they share it.
        factors: [rows, 1, 1]; None if all are 1.
        gain: [rows, 1, out], what the base's product is multiplied by; None without DoRA.
    """

    uses: tuple[RowUse | None, ...]
    row_of: mx.array
    a_of: mx.array
    b_of: mx.array
    weights: mx.array | None
    uniform: ModuleRun | None
    factors: mx.array | None
    gain: mx.array | None


@dataclass(frozen=True)
class SharedPlan:
    """How the modules that read the same input multiply it by ``A``, all of them at once. Items are theirs in turn.

    Attributes:
        row_of, page_of: [items] uint32.
        factors: [items, 1, 1]; None if all are 1.
        segments: by module path.
    """

    row_of: mx.array
    page_of: mx.array
    factors: mx.array | None
    segments: dict[str, Segments]


@dataclass(frozen=True)
class Segments:
    """How one module multiplies by ``B``: one product for each run of ranks, over the rows that share it.

    Attributes:
        slots: [rows of a run, pages] uint32, the shared plan's item whose eight ranks belong to a page of ``B``.
            Pages that are in no segment have any.
        bounds: [segments, 2] uint32, first and last rank of each run, exact: no padding is read. One per row, empty for
            a bare one; or, where rows share runs, one per run and an empty one.
        pick: [rows] uint32, each row's product among [segments * rows of a run]; None if they are in order.
        items: the module's own among the shared plan's.
    """

    slots: mx.array
    bounds: mx.array
    pick: mx.array | None
    items: slice


class ActiveRows:
    """Which adapter each row of a forward pass uses. Pages that it refers to stay as they are while it lives.

    Args:
        slots: a slot per row, 0 for the bare base.
        factors: a factor per row.
        lookup: module path and slot to the pages and the gain there, None if the adapter leaves it alone.
        dtype: type in which the bank computes.
        stream: where products are computed beside the base's; None for the same stream.
    """

    def __init__(
        self,
        slots: Sequence[int],
        factors: Sequence[float],
        lookup: Callable[[str, int], tuple[ModuleRun, mx.array | None] | None],
        dtype: mx.Dtype,
        stream: mx.Stream | None = None,
    ) -> None:
        self.slots = tuple(slots)
        self.stream = stream
        # Not every GPU backend of MLX multiplies segments.
        self.by_segments = mx.default_device() == mx.Device(mx.cpu)
        self._factors = tuple(factors)
        self._lookup = lookup
        self._dtype = dtype
        self._plans: dict[str, ModulePlan | None] = {}
        self._shared: dict[tuple[str, ...], SharedPlan | None] = {}
        # Modules with the same pages, which most are, share their arrays.
        self._arrays: dict[object, tuple[mx.array, mx.array, mx.array, mx.array | None]] = {}
        self._shared_arrays: dict[object, tuple[mx.array, mx.array, mx.array | None]] = {}
        self._segments: dict[object, Segments] = {}
        # The input that was multiplied last, and its products, by the modules that share it.
        self._low: dict[tuple[str, ...], tuple[mx.array, mx.array]] = {}

    def plan(self, path: str) -> ModulePlan | None:
        """Return what a module has to add; None if no row's adapter touches it."""
        if path not in self._plans:
            self._plans[path] = self._build(path)
        return self._plans[path]

    def low(self, pages: ModulePages, path: str, x: mx.array) -> tuple[mx.array, Segments] | None:
        """Return ``x A`` for one token of every row, and what to make of it; None where that does not pay.

        The siblings' products are computed by the first of them and kept for the others, as long as these are called
        with the same input.

        Args:
            pages: of the module.
            path: its path.
            x: [rows, 1, in].

        Returns:
            [items, 1, 8], items of all siblings, and the module's segments.
        """
        if pages.siblings not in self._shared:
            self._shared[pages.siblings] = self._share(pages.siblings)
        shared = self._shared[pages.siblings]
        if shared is None:
            return None
        known = self._low.get(pages.siblings)
        if known is None or known[0] is not x:
            if path != next(iter(shared.segments)):
                return None
            flat = x.astype(self._dtype)
            a = pages.a.pages.swapaxes(1, 2)
            low = mx.gather_mm(flat, a, lhs_indices=shared.row_of, rhs_indices=shared.page_of)
            known = x, low if shared.factors is None else low * shared.factors
            self._low[pages.siblings] = known
        return known[1], shared.segments[path]

    def _build(self, path: str) -> ModulePlan | None:
        uses = []
        for slot, factor in zip(self.slots, self._factors, strict=True):
            found = self._lookup(path, slot) if slot else None
            uses.append(RowUse(found[0], factor, found[1]) if found else None)
        if not any(uses):
            return None
        key = _key(uses)
        if key not in self._arrays:
            self._arrays[key] = self._index(uses)
        row_of, a_of, b_of, weights = self._arrays[key]
        first = uses[0]
        factors = [use.factor if use else 1.0 for use in uses]
        return ModulePlan(
            uses=tuple(uses),
            row_of=row_of,
            a_of=a_of,
            b_of=b_of,
            weights=weights,
            uniform=first.run if first and all(use and use.run == first.run for use in uses) else None,
            factors=self._column(factors),
            gain=self._gain(uses),
        )

    def _index(self, uses: Sequence[RowUse | None]) -> tuple[mx.array, mx.array, mx.array, mx.array | None]:
        items = _items(uses)
        rows = np.array([row for row, _, _ in items], np.uint32)
        factors = np.array([use.factor for _, use, _ in items], np.float32)
        weights = None
        if not np.array_equal(rows, np.arange(len(uses))) or (factors != 1).any():
            matrix = np.zeros((len(uses), len(items)), np.float32)
            matrix[rows, np.arange(len(items))] = factors
            weights = mx.array(matrix).astype(self._dtype)
        a_of = mx.array(np.array([use.run.a.first + i for _, use, i in items], np.uint32))
        b_of = mx.array(np.array([use.run.b.first + i for _, use, i in items], np.uint32))
        return mx.array(rows), a_of, b_of, weights

    def _share(self, siblings: tuple[str, ...]) -> SharedPlan | None:
        plans = {path: plan for path in siblings if (plan := self.plan(path)) is not None and plan.uniform is None}
        if not plans or not all(_balanced(plan.uses) for plan in plans.values()):
            return None
        segments = {}
        begin = 0
        for path, plan in plans.items():
            key = begin, _key(plan.uses)
            if key not in self._segments:
                self._segments[key] = _segments(plan.uses, begin)
            segments[path] = self._segments[key]
            begin += plan.row_of.shape[0]
        together = tuple(_key(plan.uses) for plan in plans.values())
        if together not in self._shared_arrays:
            items = [item for plan in plans.values() for item in _items(plan.uses)]
            row_of = mx.array(np.array([row for row, _, _ in items], np.uint32))
            page_of = mx.array(np.array([use.run.a.first + i for _, use, i in items], np.uint32))
            self._shared_arrays[together] = row_of, page_of, self._column([use.factor for _, use, _ in items])
        return SharedPlan(*self._shared_arrays[together], segments)

    def _column(self, factors: Sequence[float]) -> mx.array | None:
        if all(factor == 1 for factor in factors):
            return None
        return mx.array(np.array(factors, np.float32)).astype(self._dtype).reshape(-1, 1, 1)

    def _gain(self, uses: Sequence[RowUse | None]) -> mx.array | None:
        width = next((use.gain.shape[0] for use in uses if use and use.gain is not None), None)
        if width is None:
            return None
        one = mx.ones((width,), self._dtype)
        rows = [one if use is None or use.gain is None else 1 + use.factor * use.gain for use in uses]
        return mx.stack(rows)[:, None, :]


def _key(uses: Sequence[RowUse | None]) -> tuple[tuple[ModuleRun, float] | None, ...]:
    return tuple((use.run, use.factor) if use else None for use in uses)


def _items(uses: Sequence[RowUse | None]) -> list[tuple[int, RowUse, int]]:
    """(row, what it uses, number of the page in its run), row by row."""
    return [(row, use, i) for row, use in enumerate(uses) if use for i in range(use.run.b.count)]


def _balanced(uses: Sequence[RowUse | None]) -> bool:
    """Whether rows share runs so evenly that products by segments waste little."""
    sharing = Counter(use.run for use in uses if use)
    return len(sharing) * max(sharing.values()) <= _SKEW * len(uses)


def _segments(uses: Sequence[RowUse | None], begin: int) -> Segments:
    """Build a module's segments; ``begin`` is its first item in the shared plan."""
    order: dict[ModuleRun, int] = {}
    place: list[tuple[int, int] | None] = []
    sharing: Counter[ModuleRun] = Counter()
    for use in uses:
        if use is None:
            place.append(None)
            continue
        place.append((order.setdefault(use.run, len(order)), sharing[use.run]))
        sharing[use.run] += 1
    width = max(sharing.values())
    slots = np.zeros((width, max(run.b.end for run in order)), np.uint32)
    item = begin
    items = slice(begin, begin + sum(use.run.b.count for use in uses if use))
    for use, at in zip(uses, place, strict=True):
        if use is not None and at is not None:
            run = use.run.b
            slots[at[1], run.first : run.end] = np.arange(item, item + run.count)
            item += run.count
    if width == 1:
        return Segments(mx.array(slots), _bounds([use.run if use else None for use in uses]), None, items)
    bare = len(order) * width
    pick = np.array([at[0] * width + at[1] if at else bare for at in place], np.uint32)
    return Segments(mx.array(slots), _bounds([*order, None]), mx.array(pick), items)


def _bounds(runs: Sequence[ModuleRun | None]) -> mx.array:
    firsts = [(run.b.first * PAGE_RANK, run.rank) if run else (0, 0) for run in runs]
    return mx.array(np.array([(first, first + rank) for first, rank in firsts], np.uint32))
