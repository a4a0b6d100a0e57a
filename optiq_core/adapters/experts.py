"""Stacks of experts that add what the rows' adapters add to each expert.

mlx-lm's blocks of experts hand every token to several experts, in a stack of linear modules per projection, and sort
the (token, expert) pairs by expert where there are many. A pair's row is known from its place before the sorting, which
is the rows' order; so the block notes whither it sorts, and each stack gathers, for every pair and every page of its
row's adapter, the page of the pair's expert.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .kinds import module_shape
from .pages import PAGE_RANK, ModulePages
from .plan import ActiveRows, ModulePlan, RowUse

# Gathering holds [pages, pairs, out] numbers; above this, a loop over the rows needs less memory.
_GATHER_LIMIT = 16_000_000


class Routing:
    """Where the running forward pass of a block sends its (token, expert) pairs."""

    def __init__(self) -> None:
        self._experts: mx.array | None = None
        self._orders: tuple[mx.array, mx.array] | None = None

    def note(self, experts: mx.array) -> None:
        """Begin a pass: the experts of every token, [..., experts per token]."""
        self._experts, self._orders = experts, None

    @property
    def orders(self) -> tuple[mx.array, mx.array]:
        """Pairs by place in the sorted order, and places by pair; both [pairs]."""
        assert self._experts is not None
        if self._orders is None:
            # The same sort as mlx-lm's, so the same order where experts are equal.
            order = mx.argsort(self._experts.flatten())
            self._orders = order, mx.argsort(order)
        return self._orders


def routing_of(block: nn.Module) -> Routing:
    """Return the routing of one of mlx-lm's blocks of experts, which notes it from now on.

    The block stays where it is, with its weights and children; it becomes an instance of a class derived from its own.
    """
    known: Routing | None = vars(block).get("_optiq_routing")
    if known is not None:
        return known
    routing = Routing()
    kind: Any = type(block)

    class Noting(kind):
        def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
            routing.note(indices)
            return super().__call__(x, indices)

    Noting.__name__ = Noting.__qualname__ = kind.__name__
    object.__setattr__(block, "__class__", Noting)
    object.__setattr__(block, "_optiq_routing", routing)
    return routing


class BankedExperts(nn.Module):
    """A stack of experts of the base with the pages of the adapters in use beside it.

    Args:
        base: the stack itself.
        path: its dotted path.
        rows: returns the rows of the running forward pass.
        pages: of the stack; what is added has their type.
        routing: of the block that it is in.
    """

    def __init__(
        self,
        base: nn.Module,
        path: str,
        rows: Callable[[], ActiveRows | None],
        pages: ModulePages,
        routing: Routing,
    ) -> None:
        super().__init__()
        self.base = base
        self._path, self._rows, self._pages, self._routing = path, rows, pages, routing
        self._inputs, self._outputs, _, self._experts = module_shape(base)

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        y = self.base(x, indices, sorted_indices=sorted_indices)
        rows = self._rows()
        plan = rows.plan(self._path) if rows is not None else None
        if plan is None:
            return y
        x = x.astype(self._pages.a.pages.dtype).reshape(-1, 1, self._inputs)
        pairs, count = indices.size, len(plan.uses)
        if sorted_indices:
            order, places = self._routing.orders
            inputs, experts = places, indices[places]
        else:
            # Before the first projection a token's pairs share its input.
            inputs, experts = mx.arange(pairs) // (pairs // x.shape[0]), indices.flatten()
        delta = self._products(plan, x, inputs.reshape(count, -1), experts.reshape(count, -1))
        delta = delta.reshape(pairs, self._outputs)
        if sorted_indices:
            delta = delta[order]
        return y + delta.reshape(y.shape).astype(y.dtype)

    def _products(self, plan: ModulePlan, x: mx.array, inputs: mx.array, experts: mx.array) -> mx.array:
        """Return ``x A B`` of every pair, [rows, pairs of a row, out].

        Args:
            plan: what the rows use.
            x: [inputs, 1, in].
            inputs, experts: which input and which expert a pair has, [rows, pairs of a row].
        """
        count, per_row = inputs.shape
        items = plan.row_of.shape[0]
        if items * per_row * self._outputs > _GATHER_LIMIT:
            bare = mx.zeros((per_row, self._outputs), x.dtype)
            uses = enumerate(plan.uses)
            return mx.stack([bare if u is None else self._row(u, x[inputs[i]], experts[i]) for i, u in uses])
        chosen = experts[plan.row_of]
        a_of, b_of = (pages[:, None] * self._experts + chosen for pages in (plan.a_of, plan.b_of))
        a = self._pages.a.pages.reshape(-1, PAGE_RANK, self._inputs).swapaxes(1, 2)
        b = self._pages.b.pages.reshape(-1, PAGE_RANK, self._outputs)
        low = mx.gather_mm(x, a, lhs_indices=inputs[plan.row_of], rhs_indices=a_of)
        delta = mx.gather_mm(low, b, rhs_indices=b_of).reshape(items, -1)
        if plan.weights is not None:
            delta = plan.weights @ delta
        return delta.reshape(count, per_row, self._outputs)

    def _row(self, use: RowUse, x: mx.array, experts: mx.array) -> mx.array:
        """Return a row's products, [pairs, out], from all its pages at once."""
        a, b = self._pages.a.matrix(use.run.a), self._pages.b.matrix(use.run.b)
        low = mx.gather_mm(x, a.swapaxes(1, 2), rhs_indices=experts)
        return use.factor * mx.gather_mm(low, b, rhs_indices=experts).squeeze(1)
