"""Carries each row's adapter through mlx-lm's batches.

mlx-lm's `BatchGenerator` merges, splits, extends and filters its KV caches as rows come and go. A pseudo cache at
the end of that list goes through the same moves, so the adapters of a batch are always in the order of its rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..adapters.bank import ActiveRows, AdapterBank, SlotHandle, active


class RowAdapters:
    """The adapters of a batch's rows, with the interface of an mlx-lm batch cache.

    Args:
        bank: builds the arrays that a forward pass needs.
        handles: a slot per row.
        factors: a factor per row.
    """

    nbytes = 0
    # What mlx-lm evaluates of a cache: nothing here.
    state: tuple[()] = ()

    def __init__(self, bank: AdapterBank, handles: Iterable[SlotHandle], factors: Iterable[float]) -> None:
        self._bank = bank
        self._handles = list(handles)
        self._factors = list(factors)
        self._rows: ActiveRows | None = None
        self._built = False

    def __deepcopy__(self, memo: dict[int, Any]) -> RowAdapters:
        return RowAdapters(self._bank, self._handles, self._factors)

    @classmethod
    def merge(cls, rows: list[RowAdapters]) -> RowAdapters:
        """Return the rows of several batches as one."""
        return cls(rows[0]._bank, [h for r in rows for h in r._handles], [f for r in rows for f in r._factors])

    def extend(self, other: RowAdapters) -> None:
        """Append another batch's rows."""
        self._set(self._handles + other._handles, self._factors + other._factors)

    def filter(self, keep: Any) -> None:
        """Keep the rows with these indices, in that order."""
        indices = [int(i) for i in keep]
        self._set([self._handles[i] for i in indices], [self._factors[i] for i in indices])

    def extract(self, index: int) -> RowAdapters:
        """Return one row."""
        return RowAdapters(self._bank, [self._handles[index]], [self._factors[index]])

    def prepare(self, **_: Any) -> None:
        """Padding does not concern adapters."""

    def finalize(self) -> None:
        """Padding does not concern adapters."""

    def active(self) -> ActiveRows | None:
        """Return the arrays of a forward pass; built once per change of the batch."""
        if not self._built:
            self._rows = self._bank.rows(self._handles, self._factors)
            self._built = True
        return self._rows

    def _set(self, handles: list[SlotHandle], factors: list[float]) -> None:
        self._handles, self._factors = handles, factors
        # What is no longer used must not keep its pages.
        self._rows, self._built = None, False


class MixedAdapterModel(nn.Module):
    """What `BatchGenerator` sees as the model: the base, run with the adapters of the rows at hand.

    Args:
        model: the base, whose modules belong to ``bank``.
        bank: its adapter bank.
    """

    def __init__(self, model: nn.Module, bank: AdapterBank) -> None:
        super().__init__()
        self.model = model
        self._bank = bank
        bank.overlap()

    @property
    def layers(self) -> Any:
        """The base's blocks."""
        return self.model.layers

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        rows: RowAdapters = cache[-1]
        token = active.set(rows.active())
        try:
            return self.model(tokens, cache=cache[:-1])
        finally:
            active.reset(token)
