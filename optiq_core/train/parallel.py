"""Data parallel over processes that MLX's launcher started: each takes its share of every batch.

``mlx.launch -n 2 optiq lora train ...`` runs the same program twice. A batch then has ``batch_size`` rows for each
process; gradients are summed with the weight of each share's tokens, so that all of it is one step on the whole batch.
Every process keeps the same weights; the first one alone reads checkpoints and writes files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import mlx.core as mx
import msgspec
from mlx.nn.utils import average_gradients
from mlx.utils import tree_map

S = TypeVar("S", bound=msgspec.Struct)

# Bytes of a run's counters as JSON; they are about a quarter of it.
_STATE_BYTES = 4096


class Processes:
    """The processes of a run; one, and every method does nothing, where MLX's launcher started none."""

    def __init__(self) -> None:
        self._group: Any = mx.distributed.init()
        self.size: int = self._group.size()
        self.rank: int = self._group.rank()

    @property
    def first(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def highest(self, value: int) -> int:
        """The highest of what the processes say, so that all do the same."""
        if self.size == 1:
            return value
        with mx.stream(mx.cpu):
            found: Any = mx.distributed.all_max(mx.array(value), group=self._group).item()
        return int(found)

    def sums(self, values: Sequence[float]) -> list[float]:
        """Of each value, the sum over the processes."""
        if self.size == 1:
            return list(values)
        # In float32, whole numbers are exact up to 16 million: more tokens than a step has.
        with mx.stream(mx.cpu):
            summed: Any = mx.distributed.all_sum(mx.array(list(values), mx.float32), group=self._group).tolist()
        return list(summed)

    def reduce(self, value: float, tokens: int, finite: bool, grads: Any) -> tuple[float, int, bool, Any]:
        """Loss, tokens and gradients of the whole batch from those of this process's share.

        Args:
            value: mean loss over the share's tokens; anything where there are none.
            tokens: of the share.
            finite: whether loss and gradients are.
            grads: of the mean loss.
        """
        if self.size == 1:
            return value, tokens, finite, grads
        mine = [value * tokens if finite and tokens else 0.0, float(tokens), 0.0 if finite or not tokens else 1.0]
        loss, total, bad = self.sums(mine)
        share = tokens * self.size / total if tokens else 0.0
        if bad:
            return float("nan"), int(total), False, grads
        grads = average_gradients(tree_map(lambda grad: grad * share, grads), self._group, communication_stream=mx.cpu)
        mx.eval(grads)
        return loss / total, int(total), True, grads

    def same_counters(self, state: S) -> S:
        """The first process's counters of a run."""
        if self.size == 1:
            return state
        content = msgspec.json.encode(state) if self.first else b""
        padded = mx.array(list(content.ljust(_STATE_BYTES)), mx.int32) * int(self.first)
        with mx.stream(mx.cpu):
            shared: Any = mx.distributed.all_sum(padded, group=self._group).tolist()
        return msgspec.json.decode(bytes(shared).strip(), type=type(state))

    def same_arrays(self, tree: Any) -> Any:
        """The first process's arrays."""
        if self.size == 1:
            return tree

        def shared(value: mx.array) -> mx.array:
            own = value if self.first else mx.zeros_like(value)
            # Rings sum no unsigned integers of 64 bits, which optimizers count steps in.
            sent = own.astype(mx.int32) if own.dtype == mx.uint64 else own
            return mx.distributed.all_sum(sent, group=self._group, stream=mx.cpu).astype(value.dtype)

        tree = tree_map(shared, tree)
        mx.eval(tree)
        return tree
