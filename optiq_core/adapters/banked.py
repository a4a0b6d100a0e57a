"""Modules of the base that add what the rows' adapters add there.

Decode gathers: one ``gather_mm`` multiplies every row by its own pages of ``A``, one by its pages of ``B``, and a
small product with the weights sums each row's pages (S-LoRA, arXiv:2311.03285, does this with custom kernels). Three
kernels per module, whatever the mix of ranks, blends and factors; a bare row has no pages and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from .kinds import linear_dims
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

    @property
    def pool(self) -> PagePool:
        """The pages."""
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
    if plan.uniform is not None:
        run, factor = plan.uniform
        delta = _product(pool, run, x)
        return y + (delta if factor == 1 else factor * delta).astype(y.dtype)
    rows, tokens, outputs = y.shape
    items = plan.page_of.shape[0]
    if items * tokens * outputs > _GATHER_LIMIT:
        return y + _loop(pool, plan, x, outputs).astype(y.dtype)
    low = mx.gather_mm(x, pool.a.swapaxes(1, 2), lhs_indices=plan.row_of, rhs_indices=plan.page_of)
    delta = mx.gather_mm(low, pool.b, rhs_indices=plan.page_of)
    if plan.weights is None:
        return y + delta.astype(y.dtype)
    flat = delta.astype(y.dtype).reshape(items, tokens * outputs)
    return mx.addmm(y.reshape(rows, tokens * outputs), plan.weights.astype(y.dtype), flat).reshape(y.shape)


def _product(pool: PagePool, run: PageRun, x: mx.array) -> mx.array:
    end = run.first + run.count
    return (x @ pool.a[run.first : end].flatten(0, 1).T) @ pool.b[run.first : end].flatten(0, 1)


def _loop(pool: PagePool, plan: ModulePlan, x: mx.array, outputs: int) -> mx.array:
    bare = mx.zeros((x.shape[1], outputs), x.dtype)
    deltas = [bare if use is None else use.factor * _product(pool, use.run, x[i]) for i, use in enumerate(plan.uses)]
    return mx.stack(deltas)
