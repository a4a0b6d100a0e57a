"""What the low-rank layers on a linear module share: the module, A and B, dropout and scale."""

from __future__ import annotations

import math

import mlx.core as mx
from mlx import nn

from optiq_core.adapters.kinds import linear_dims


class LowRankLinear(nn.Module):
    """A linear module with A ``[rows, rank]`` drawn as mlx-lm draws it and B ``[rank, out]`` at zero.

    Args:
        linear: plain or quantized, with or without a bias.
        rank: of A and B.
        scale: of their product.
        dropout: probability with which an input of the low-rank path is zeroed while training.
        rows: of A; the module's inputs if not given.
    """

    def __init__(self, linear: nn.Module, *, rank: int, scale: float, dropout: float, rows: int | None = None) -> None:
        super().__init__()
        inputs, outputs = linear_dims(linear)
        self.linear = linear
        self.dropout = nn.Dropout(p=dropout)
        self.scale = scale
        bound = 1 / math.sqrt(inputs)
        self.lora_a = mx.random.uniform(low=-bound, high=bound, shape=(rows or inputs, rank))
        self.lora_b = mx.zeros((rank, outputs))
