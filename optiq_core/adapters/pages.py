"""The low-rank matrices that a module's rows use now, in pages of eight ranks.

An adapter of rank r takes ``ceil(r / 8)`` neighbouring pages, so a rank of 64 costs its own rows 8 pages and a row of
rank 8 one: nobody pays for another's rank. Both matrices lie with the rank in front of the wide dimension, because a
single row's product then reads memory in order (on the CPU 16 to 20 GB/s, against 6 GB/s the other way round).
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


class PagePool:
    """The pages of one module: ``a`` [pages, 8, in] and ``b`` [pages, 8, out].

    Writing replaces the arrays. MLX does that in place if no step that is being computed still holds them, which the
    caller sees to; otherwise it costs a copy, and that step keeps what it began with.

    Args:
        input_dims: columns of ``a``.
        output_dims: columns of ``b``.
        dtype: of both.
        experts: of a stack; its pages are [pages, experts, 8, in] and [pages, experts, 8, out]. 0 for other modules.
    """

    def __init__(self, input_dims: int, output_dims: int, dtype: mx.Dtype, experts: int = 0) -> None:
        pages = _FIRST_STACKED if experts else _FIRST_PAGES
        stack = (experts,) if experts else ()
        self.a = mx.zeros((pages, *stack, PAGE_RANK, input_dims), dtype)
        self.b = mx.zeros((pages, *stack, PAGE_RANK, output_dims), dtype)
        self._used = bytearray(pages)

    @property
    def nbytes(self) -> int:
        """Bytes of all pages, free ones included."""
        return self.a.nbytes + self.b.nbytes

    @property
    def pages(self) -> int:
        """Number of pages, free ones included."""
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
            # Free pages at the end count.
            first = len(self._used.rstrip(b"\0"))
            self._grow(first + count)
        self._used[first : first + count] = b"\1" * count
        return PageRun(first, count)

    def give_back(self, run: PageRun) -> None:
        """Free pages; what they hold stays until they are taken again."""
        self._used[run.first : run.first + run.count] = bytes(run.count)

    def write(self, run: PageRun, a: mx.array, b: mx.array) -> None:
        """Fill reserved pages.

        Args:
            run: pages that :meth:`take` gave.
            a: [in, rank], or [experts, in, rank].
            b: [rank, out], or [experts, rank, out].
        """
        end = run.first + run.count
        self.a[run.first : end] = _paged(a.swapaxes(-1, -2), run.count)
        self.b[run.first : end] = _paged(b, run.count)

    def _grow(self, pages: int) -> None:
        extra = max(pages, 2 * len(self._used)) - len(self._used)
        rest = [(0, 0)] * (self.a.ndim - 1)
        self.a, self.b = mx.pad(self.a, [(0, extra), *rest]), mx.pad(self.b, [(0, extra), *rest])
        self._used += bytes(extra)


def _paged(matrix: mx.array, count: int) -> mx.array:
    """Zero-pad [..., rank, width] to whole pages: [count, ..., 8, width]."""
    *stack, rank, width = matrix.shape
    missing = count * PAGE_RANK - rank
    if missing:
        matrix = mx.pad(matrix, [(0, 0)] * len(stack) + [(0, missing), (0, 0)])
    return mx.moveaxis(matrix.reshape(*stack, count, PAGE_RANK, width), len(stack), 0)
