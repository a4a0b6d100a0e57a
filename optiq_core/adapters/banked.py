"""Modules of the base that add what the rows' adapters add there.

Decode gathers: one ``gather_mm`` multiplies every row by its own pages of ``A``, one by its pages of ``B``, and a
small product with the weights sums each row's pages (S-LoRA, arXiv:2311.03285, does this with custom kernels). Three
kernels per module, whatever the mix of ranks, blends and factors; a bare row has no pages and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from .kinds import linear_dims, module_shape
from .pages import PagePool, PageRun
from .plan import ActiveRows, ModulePlan

# Gathering holds [items, tokens, out] numbers; above this, a loop over the rows needs less memory and is as fast.
_GATHER_LIMIT = 4_000_000


class BankedLinear(nn.Module):
    """A linear module of the base with the pages of the adapters in use beside it.

    Args:
        base: the module itself.
        path: its dotted path.
        rows: returns the rows of the running forward pass.
        dtype: type in which adapters are kept and added.
    """

    def __init__(self, base: nn.Module, path: str, rows: Callable[[], ActiveRows | None], dtype: mx.Dtype) -> None:
        super().__init__()
        self.base = base
        self._path, self._rows, self._dtype = path, rows, dtype
        # Not a parameter of the model: nn.Module keeps plain objects apart.
        self._pool = PagePool(*linear_dims(base), dtype)

    def pool_of(self, key: str) -> PagePool:
        """Return the pages; a linear module has the one set."""
        return self._pool

    def __call__(self, x: mx.array) -> mx.array:
        y = self.base(x)
        rows = self._rows()
        plan = rows.plan(self._path) if rows is not None else None
        if plan is None:
            return y
        bias = self.base.bias if "bias" in self.base else None
        return add_rows(self._pool, plan, x.astype(self._dtype), y, bias)


def add_rows(pool: PagePool, plan: ModulePlan, x: mx.array, y: mx.array, bias: mx.array | None) -> mx.array:
    """Return the output of a linear module with what each row's adapter adds.

    Args:
        pool: the module's pages.
        plan: what the rows use of them.
        x: [rows, tokens, in], the module's input.
        y: [rows, tokens, out], the base's output.
        bias: [out], the part of ``y`` that DoRA's gain leaves alone.
    """
    if plan.gain is not None:
        gain = plan.gain.astype(y.dtype)
        y = y * gain if bias is None else (y - bias) * gain + bias
    return _add_products(pool.a, pool.b, plan, x, y, lookup=False)


class BankedEmbedding(nn.Module):
    """An embedding of the base with the pages of the adapters in use beside it.

    What a token is looked up as gets the token's own row of ``A`` times ``B``. A head that is tied to the embedding
    gets the same change of its weight from mlx-lm's adapters; PEFT's leave it alone and have pages of their own.

    Args:
        base: the module itself.
        path: its dotted path.
        rows: returns the rows of the running forward pass.
        dtype: type in which adapters are kept and added.
    """

    def __init__(self, base: nn.Module, path: str, rows: Callable[[], ActiveRows | None], dtype: mx.Dtype) -> None:
        super().__init__()
        self.base = base
        self._path, self._rows, self._dtype = path, rows, dtype
        self._pools: dict[str, tuple[PagePool, ...]] = {}

    def pool_of(self, key: str) -> PagePool:
        """Return the pages of the adapters that change lookup and head, or the lookup alone; made on first use."""
        if key not in self._pools:
            tokens, width, *_ = module_shape(self.base)
            # In a tuple, for nn.Module takes no part in it.
            self._pools[key] = (PagePool(tokens, width, self._dtype),)
        return self._pools[key][0]

    def __call__(self, ids: mx.array) -> mx.array:
        y = self.base(ids)
        rows = self._rows()
        if rows is None:
            return y
        for key in self._pools:
            plan = rows.plan(key)
            if plan is not None:
                pool = self.pool_of(key)
                y = _add_products(pool.a, pool.b, plan, ids, y, lookup=True)
        return y

    def as_linear(self, x: mx.array) -> mx.array:
        """Project [rows, tokens, width] onto the vocabulary, with what the rows' adapters add to a tied head."""
        y = self.base.as_linear(x)
        rows = self._rows()
        plan = rows.plan(self._path) if rows is not None else None
        if plan is None:
            return y
        pool = self.pool_of(self._path)
        return _add_products(pool.b, pool.a, plan, x.astype(self._dtype), y, lookup=False)

    @property
    def weight(self) -> mx.array:
        """The base's own weight; models look at its type."""
        return self.base.weight


def _add_products(a: mx.array, b: mx.array, plan: ModulePlan, x: mx.array, y: mx.array, *, lookup: bool) -> mx.array:
    """Return ``y`` with the rows' products ``x A B``.

    Args:
        a, b: pages, [pages, 8, in] and [pages, 8, out].
        plan: what the rows use of them.
        x: [rows, tokens, in]; or, for a lookup, [rows, tokens], which columns of ``a`` to take.
        y: [rows, tokens, out], what they are added to.
        lookup: x are indices.
    """
    product = _looked_up if lookup else _product
    if plan.uniform is not None:
        run, factor = plan.uniform
        delta = product(a, b, run, x)
        return y + (delta if factor == 1 else factor * delta).astype(y.dtype)
    rows, tokens, outputs = y.shape
    items = plan.page_of.shape[0]
    if items * tokens * outputs > _GATHER_LIMIT:
        bare = mx.zeros((tokens, outputs), b.dtype)
        uses = enumerate(plan.uses)
        deltas = [bare if use is None else use.factor * product(a, b, use.run, x[i]) for i, use in uses]
        return y + mx.stack(deltas).astype(y.dtype)
    if lookup:
        low = a.swapaxes(1, 2)[plan.page_of[:, None], x[plan.row_of]]
    else:
        low = mx.gather_mm(x, a.swapaxes(1, 2), lhs_indices=plan.row_of, rhs_indices=plan.page_of)
    delta = mx.gather_mm(low, b, rhs_indices=plan.page_of)
    if plan.weights is None:
        return y + delta.astype(y.dtype)
    flat = delta.astype(y.dtype).reshape(items, tokens * outputs)
    return mx.addmm(y.reshape(rows, tokens * outputs), plan.weights.astype(y.dtype), flat).reshape(y.shape)


def _product(a: mx.array, b: mx.array, run: PageRun, x: mx.array) -> mx.array:
    end = run.first + run.count
    return (x @ a[run.first : end].flatten(0, 1).T) @ b[run.first : end].flatten(0, 1)


def _looked_up(a: mx.array, b: mx.array, run: PageRun, ids: mx.array) -> mx.array:
    end = run.first + run.count
    return a[run.first : end].flatten(0, 1).T[ids] @ b[run.first : end].flatten(0, 1)
