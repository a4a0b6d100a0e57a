"""Low-rank layers that know how their module's weight is quantized: for merging without loss."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn

from optiq_core.adapters.kinds import linear_dims
from optiq_core.adapters.tensors import base_weight
from optiq_core.base.metadata import ModuleBits
from optiq_core.train.low_rank import LowRankLinear

# Bits per weight from which a module counts as not quantized.
FLOAT_BITS = 16


def rounded(weight: mx.array, grid: ModuleBits) -> mx.array:
    """The weight ``[out, in]`` as it is after quantizing it, in float32."""
    packed = mx.quantize(weight, group_size=grid.group_size, bits=grid.bits, mode=grid.mode)
    return mx.dequantize(*packed, group_size=grid.group_size, bits=grid.bits, mode=grid.mode).astype(mx.float32)


class QatLinear(LowRankLinear):
    """Computes with the merged weight as it is after quantizing, and differentiates as if it were not rounded.

    Straight-through on the sum: with ``w = W + s (A B)^T`` the weight is ``w + stop_gradient(Q(w) - w)``, so that the
    adapter learns what survives a merge. The sum is rounded anew: its groups get scales and biases of their own.

    Args:
        linear: plain or quantized.
        grid: how the merged weight will be quantized.
        rank, scale: of the low-rank product.
    """

    def __init__(self, linear: nn.Module, grid: ModuleBits, *, rank: int, scale: float) -> None:
        super().__init__(linear, rank=rank, scale=scale, dropout=0.0)
        self._grid = grid

    def __call__(self, x: mx.array) -> mx.array:
        merged = base_weight(self.linear) + self.scale * (self.lora_a @ self.lora_b).T
        held = mx.stop_gradient(merged)
        y = x @ (merged + mx.stop_gradient(rounded(held, self._grid) - held)).astype(x.dtype).T
        bias: Any = self.linear.get("bias")
        return y if bias is None else y + bias


class QaLoraLinear(LowRankLinear):
    """QA-LoRA (arXiv:2309.14717): A sees the sum of the inputs of each quantization group.

    What it adds to the weight is then the same for a whole group, and merges into the group's bias: the integers stay.

    Args:
        linear: plain or quantized.
        grid: how its weight is quantized.
        rank, scale, dropout: of the low-rank path.
    """

    def __init__(self, linear: nn.Module, grid: ModuleBits, *, rank: int, scale: float, dropout: float) -> None:
        rows = linear_dims(linear)[0] // grid.group_size
        super().__init__(linear, rows=rows, rank=rank, scale=scale, dropout=dropout)
        self._group_size = grid.group_size

    def __call__(self, x: mx.array) -> mx.array:
        dropped = self.dropout(x)
        pooled = dropped.reshape(*x.shape[:-1], -1, self._group_size).sum(axis=-1)
        return self.linear(x) + (self.scale * ((pooled @ self.lora_a) @ self.lora_b)).astype(x.dtype)

    def exported(self) -> dict[str, mx.array]:
        """The same function as an ordinary adapter: A's rows repeated over their groups."""
        return {"lora_a": mx.repeat(self.lora_a, self._group_size, axis=0), "lora_b": self.lora_b}
