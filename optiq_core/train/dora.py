"""DoRA layers (arXiv:2402.09353) on linear modules of any bit width, without a dense copy of the weight."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn

from optiq_core.adapters.tensors import base_weight
from optiq_core.train.low_rank import LowRankLinear


class DoraLinear(LowRankLinear):
    """``m / ||W + s (A B)^T|| * (W x + s B^T A^T x)``, the norm taken for each output row and held constant.

    mlx-lm's layer is the same function, but dequantizes the whole weight in every call. The norm needs only products
    with the weight: with ``b`` the column of ``s B`` that belongs to row ``w`` of the weight, it is
    ``|w|^2 + 2 b . (A^T w) + b^T (A^T A) b``, and ``A^T w`` for all rows is the base's own layer applied to ``A^T``.

    Args:
        linear: plain or quantized, with or without a bias.
        rank: of A and B.
        scale: s.
        dropout: probability with which an input of the low-rank path is zeroed while training.
    """

    def __init__(self, linear: nn.Module, *, rank: int, scale: float, dropout: float) -> None:
        super().__init__(linear, rank=rank, scale=scale, dropout=dropout)
        # Of the dequantized weight: the base that is served, not the one before it was quantized.
        self.squares = mx.square(base_weight(linear)).sum(axis=1)
        self.m = mx.sqrt(self.squares)
        self.freeze(keys=["squares"], recurse=False)

    def __call__(self, x: mx.array) -> mx.array:
        bias: Any = self.linear.get("bias")
        low_rank = (self.dropout(x) @ self.lora_a) @ self.lora_b
        out = self.linear(x) + (self.scale * low_rank).astype(x.dtype)
        gain = (self.m / self.norms()).astype(x.dtype)
        return gain * out if bias is None else gain * (out - bias) + bias

    def norms(self) -> mx.array:
        """Norm of every row of the adapted weight, ``[out]`` in float32, without a gradient."""
        a, b = mx.stop_gradient(self.lora_a), self.scale * mx.stop_gradient(self.lora_b)
        crossed = self.linear(a.T)
        bias: Any = self.linear.get("bias")
        if bias is not None:
            crossed = crossed - bias
        squares = self.squares + (2 * crossed.astype(mx.float32) * b).sum(axis=0) + (((a.T @ a) @ b) * b).sum(axis=0)
        # Rounding may leave a row that the adapter erases below zero.
        return mx.sqrt(mx.maximum(squares, 1e-12))
