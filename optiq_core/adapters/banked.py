"""Modules of the base that add what the rows' adapters add there.

In a decode step on the CPU one ``gather_mm`` multiplies every row by its own pages of ``A``, for all modules that read
the same input at once, and one ``segmented_mm`` per module multiplies the products by each adapter's ranks of ``B``
(S-LoRA, arXiv:2311.03285, does this with custom kernels). Whatever the mix of ranks, blends and factors, a step reads
every adapter's own bytes once; a bare row has none. Both run on a second stream, beside the base's own product. Where
every row has one page, of rank 8 or less, a gather of ``B`` is as good, on the base's stream.

Chunks of prompts, and decode steps on a GPU, where not every backend of MLX has ``segmented_mm``, gather pages of both
matrices and sum each row's pages in a small product with the weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from .kinds import LOOKUP
from .pages import PAGE_RANK, ModulePages, ModuleRun
from .plan import ActiveRows, ModulePlan

# Gathering holds [items, tokens, out] numbers; above this, a loop over the rows needs less memory and is as fast.
_GATHER_LIMIT = 4_000_000
Rows = Callable[[], ActiveRows | None]


class BankedLinear(nn.Module):
    """A linear module of the base with the pages of the adapters in use beside it.

    Args:
        base: the module itself.
        path: its dotted path.
        rows: returns the rows of the running forward pass.
        pages: of the module; what is added has their type.
    """

    def __init__(self, base: nn.Module, path: str, rows: Rows, pages: ModulePages) -> None:
        super().__init__()
        self.base = base
        self._path, self._rows, self._pages = path, rows, pages

    def __call__(self, x: mx.array) -> mx.array:
        y = self.base(x)
        rows = self._rows()
        plan = rows.plan(self._path) if rows is not None else None
        if rows is None or plan is None:
            return y
        if plan.gain is not None:
            gain = plan.gain.astype(y.dtype)
            # DoRA's gain leaves the bias alone.
            y = (y - self.base.bias) * gain + self.base.bias if "bias" in self.base else y * gain
        if rows.by_segments and plan.uniform is None and x.ndim == 3 and x.shape[1] == 1:
            # A plan without weights has one page for each row.
            product = segmented if plan.weights is not None else single_pages
            delta = product(self._pages, self._path, rows, x)
            if delta is not None:
                return y + delta.astype(y.dtype)
        pages = self._pages
        return add_products(pages.a.pages, pages.b.pages, plan, x.astype(pages.a.pages.dtype), y)


def single_pages(pages: ModulePages, path: str, rows: ActiveRows, x: mx.array) -> mx.array | None:
    """Return what :func:`segmented` does where every row has one page of the module and a factor of 1.

    One gather then reads no more than the segments would, and needs nothing put in order.
    """
    found = rows.low(pages, path, x)
    if found is None:
        return None
    low, segments = found
    own = low if low.shape[0] == x.shape[0] else low[segments.items]
    plan = rows.plan(path)
    assert plan is not None
    return mx.gather_mm(own, pages.b.pages, rhs_indices=plan.b_of)


def segmented(pages: ModulePages, path: str, rows: ActiveRows, x: mx.array) -> mx.array | None:
    """Return what the rows' adapters add to a linear module in a decode step, [rows, 1, out]; None if that won't pay.

    Args:
        pages: of the module.
        path: its dotted path.
        rows: of the forward pass.
        x: [rows, 1, in], the module's input.
    """
    with mx.stream(rows.stream) if rows.stream is not None else contextlib.nullcontext():
        found = rows.low(pages, path, x)
        if found is None:
            return None
        low, segments = found
        b = pages.b.pages
        width, count = segments.slots.shape
        # Ranks in the order of the pages of B.
        ranks = low.reshape(-1, PAGE_RANK)[segments.slots].reshape(width, count * PAGE_RANK)
        delta = mx.segmented_mm(ranks, b[:count].reshape(count * PAGE_RANK, -1), segments.bounds)
        return delta if segments.pick is None else delta.reshape(-1, 1, b.shape[-1])[segments.pick]


class BankedEmbedding(nn.Module):
    """An embedding of the base with the pages of the adapters in use beside it.

    What a token is looked up as gets the token's own row of ``A`` times ``B``. A head that is tied to the embedding
    gets the same change of its weight from mlx-lm's adapters; PEFT's leave it alone and have pages of their own.

    Args:
        base: the module itself.
        path: its dotted path.
        rows: returns the rows of the running forward pass.
        pages: what adapters change, the path or what ends with ``@lookup``, to its pages; grows as adapters come.
    """

    def __init__(self, base: nn.Module, path: str, rows: Rows, pages: Callable[[str], ModulePages | None]) -> None:
        super().__init__()
        self.base = base
        self._path, self._rows, self._pages = path, rows, pages

    def __call__(self, ids: mx.array) -> mx.array:
        y = self.base(ids)
        rows = self._rows()
        if rows is None:
            return y
        for key in (self._path, self._path + LOOKUP):
            plan, pages = rows.plan(key), self._pages(key)
            if plan is not None and pages is not None:
                y = add_products(pages.a.pages, pages.b.pages, plan, ids, y, lookup=True)
        return y

    def as_linear(self, x: mx.array) -> mx.array:
        """Project [rows, tokens, width] onto the vocabulary, with what the rows' adapters add to a tied head."""
        y = self.base.as_linear(x)
        rows, pages = self._rows(), self._pages(self._path)
        plan = rows.plan(self._path) if rows is not None else None
        if plan is None or pages is None:
            return y
        return add_products(pages.b.pages, pages.a.pages, plan, x.astype(pages.a.pages.dtype), y, swapped=True)

    @property
    def weight(self) -> mx.array:
        """The base's own weight; models look at its type."""
        return self.base.weight


def add_products(
    a: mx.array, b: mx.array, plan: ModulePlan, x: mx.array, y: mx.array, *, lookup: bool = False, swapped: bool = False
) -> mx.array:
    """Return ``y`` with the rows' products ``x A B``.

    Args:
        a, b: pages, [pages, 8, in] and [pages, 8, out].
        plan: what the rows use of them.
        x: [rows, tokens, in]; or, for a lookup, [rows, tokens], which columns of ``a`` to take.
        y: [rows, tokens, out], what they are added to.
        lookup: x are indices.
        swapped: ``a`` holds what the plan calls B.
    """
    a_of, b_of = (plan.b_of, plan.a_of) if swapped else (plan.a_of, plan.b_of)

    def product(run: ModuleRun, x: mx.array) -> mx.array:
        a_run, b_run = (run.b, run.a) if swapped else (run.a, run.b)
        left = a[a_run.first : a_run.end].flatten(0, 1).T
        return (left[x] if lookup else x @ left) @ b[b_run.first : b_run.end].flatten(0, 1)

    if plan.uniform is not None:
        delta = product(plan.uniform, x)
        return y + (delta if plan.factors is None else plan.factors * delta).astype(y.dtype)
    rows, tokens, outputs = y.shape
    items = plan.row_of.shape[0]
    if items * tokens * outputs > _GATHER_LIMIT:
        bare = mx.zeros((tokens, outputs), b.dtype)
        uses = enumerate(plan.uses)
        deltas = [bare if use is None else use.factor * product(use.run, x[i]) for i, use in uses]
        return y + mx.stack(deltas).astype(y.dtype)
    if lookup:
        low = a.swapaxes(1, 2)[a_of[:, None], x[plan.row_of]]
    else:
        low = mx.gather_mm(x, a.swapaxes(1, 2), lhs_indices=plan.row_of, rhs_indices=a_of)
    delta = mx.gather_mm(low, b, rhs_indices=b_of)
    if plan.weights is None:
        return y + delta.astype(y.dtype)
    flat = delta.astype(y.dtype).reshape(items, tokens * outputs)
    return mx.addmm(y.reshape(rows, tokens * outputs), plan.weights.astype(y.dtype), flat).reshape(y.shape)
