"""The low-rank matrices that rows use now, in pages of eight ranks.

An adapter of rank r takes ``ceil(r / 8)`` neighbouring pages of ``A`` and of ``B`` in every module that it adapts, so
a rank of 64 costs its own rows 8 pages and a row of rank 8 one: nobody pays for another's rank. Both matrices lie with
the rank in front of the wide dimension, because a single row's product then reads memory in order (on the CPU 16 to
20 GB/s, against 6 GB/s the other way round). Modules that read the same input keep their ``A`` in one pool, so that
one gather serves all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

PAGE_RANK = 8
_FIRST_PAGES = 16
# A page of a stack has eight ranks of every expert: room is made as adapters come.
_FIRST_STACKED = 1


@dataclass(frozen=True)
class PageRun:
    """Neighbouring pages: ``first`` to ``first + count``."""

    first: int
    count: int

    @property
    def end(self) -> int:
        """The page after the last."""
        return self.first + self.count


@dataclass(frozen=True)
class ModuleRun:
    """The pages of one adapter in one module, and its rank."""

    a: PageRun
    b: PageRun
    rank: int


class PagePool:
    """Pages of one width: ``pages`` is [pages, 8, width].

    Writing replaces the array. MLX does that in place if no step that is being computed still holds it, which the
    caller sees to; otherwise it costs a copy, and that step keeps what it began with.

    Args:
        width: columns.
        dtype: of the pages.
        experts: of a stack, whose pages are [pages, experts, 8, width]; 0 for other modules.
        modules: that share the pool.
    """

    def __init__(self, width: int, dtype: mx.Dtype, *, experts: int = 0, modules: int = 1) -> None:
        self._least = _FIRST_STACKED if experts else _FIRST_PAGES * modules
        stack = (experts,) if experts else ()
        self.pages = mx.zeros((self._least, *stack, PAGE_RANK, width), dtype)
        self._used = bytearray(self._least)

    @property
    def nbytes(self) -> int:
        """Bytes of all pages, free ones included."""
        return self.pages.nbytes

    def __len__(self) -> int:
        return len(self._used)

    def take(self, rank: int, *, grow: bool) -> PageRun | None:
        """Reserve neighbouring pages for a rank.

        Args:
            rank: ranks to hold.
            grow: double the pool if there is no room; else None is returned then.
        """
        count = -(-rank // PAGE_RANK)
        first = self._used.find(bytes(count))
        if first < 0:
            if not grow:
                return None
            first = self._tail
            self._grow(first + count)
        self._used[first : first + count] = b"\1" * count
        return PageRun(first, count)

    def give_back(self, run: PageRun) -> None:
        """Free pages; what they hold stays until they are taken again."""
        self._used[run.first : run.end] = bytes(run.count)

    def shrink(self) -> bool:
        """Cut the pool where most of it is free; pages in use stay where they are. Tells whether it did."""
        wanted = max(self._least, 2 * self._tail)
        if 2 * wanted > len(self._used):
            return False
        # A slice would keep the whole of it in memory.
        self.pages = mx.take(self.pages, mx.arange(wanted), axis=0)
        del self._used[wanted:]
        return True

    def write(self, run: PageRun, matrix: mx.array) -> None:
        """Fill reserved pages from [rank, width], or [experts, rank, width]."""
        self.pages[run.first : run.end] = _paged(matrix, run.count)

    def matrix(self, run: PageRun) -> mx.array:
        """Return the ranks of a run below each other, [ranks, width], or [experts, ranks, width]."""
        pages = self.pages[run.first : run.end]
        return (pages.swapaxes(0, 1) if pages.ndim == 4 else pages).flatten(-3, -2)

    @property
    def _tail(self) -> int:
        """Pages up to the last that is in use."""
        return len(self._used.rstrip(b"\0"))

    def _grow(self, pages: int) -> None:
        extra = max(pages, 2 * len(self._used)) - len(self._used)
        self.pages = mx.pad(self.pages, [(0, extra)] + [(0, 0)] * (self.pages.ndim - 1))
        self._used += bytes(extra)


@dataclass(frozen=True)
class ModulePages:
    """The pools of one module.

    Attributes:
        a, b: pages of ``A`` and ``B``; ``a`` is shared by the siblings.
        siblings: paths of the modules that read the same input, this one among them.
    """

    a: PagePool
    b: PagePool
    siblings: tuple[str, ...]

    def give_back(self, run: ModuleRun) -> None:
        """Free pages of both pools."""
        self.a.give_back(run.a)
        self.b.give_back(run.b)

    def write(self, run: ModuleRun, a: mx.array, b: mx.array) -> None:
        """Fill reserved pages.

        Args:
            run: pages that both pools gave.
            a: [in, rank], or [experts, in, rank].
            b: [rank, out], or [experts, rank, out].
        """
        self.a.write(run.a, a.swapaxes(-1, -2))
        self.b.write(run.b, b)


def _paged(matrix: mx.array, count: int) -> mx.array:
    """Zero-pad [..., rank, width] to whole pages: [count, ..., 8, width]."""
    *stack, rank, width = matrix.shape
    missing = count * PAGE_RANK - rank
    if missing:
        matrix = mx.pad(matrix, [(0, 0)] * len(stack) + [(0, missing), (0, 0)])
    return mx.moveaxis(matrix.reshape(*stack, count, PAGE_RANK, width), len(stack), 0)
