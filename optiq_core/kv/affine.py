"""Affine quantization of keys and values by mlx's own kernels, plain or in a randomly rotated space.

Both keep `mx.quantized_matmul`, which Metal and CUDA run fused. The rotation spreads the few large channels of keys
over all of them, which is most of what affine quantization loses on.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from .codec import Parts
from .config import AFFINE_BITS, GROUP_SIZES
from .rotation import random_rotation


class AffineCodec:
    """`mx.quantize` along the channels of a head.

    Args:
        head_dim: channels of a head, a multiple of the group size.
        bits: 2, 3, 4, 5, 6 or 8.
        group_size: channels that share a scale and a bias: 32, 64 or 128.
        seed: of a random rotation; None for none.

    Raises:
        ValueError: mlx cannot quantize like this.
    """

    def __init__(self, head_dim: int, bits: int, group_size: int, seed: int | None = None) -> None:
        if bits not in AFFINE_BITS or group_size not in GROUP_SIZES or head_dim % group_size:
            raise ValueError(
                f"affine caches take bits of {AFFINE_BITS}, group sizes of {GROUP_SIZES} and heads that are a "
                f"multiple of it; got {bits} bits, group size {group_size}, heads of {head_dim} channels"
            )
        self.dim, self.bits, self.group_size, self.seed = head_dim, bits, group_size, seed
        self._rotation = None if seed is None else random_rotation(head_dim, seed)

    def __deepcopy__(self, memo: dict[int, Any]) -> AffineCodec:
        return self

    @property
    def spec(self) -> str:
        """``affine:BITS:DIM:GROUP`` or ``rotated:BITS:DIM:GROUP:SEED``."""
        shared = f"{self.bits}:{self.dim}:{self.group_size}"
        return f"affine:{shared}" if self.seed is None else f"rotated:{shared}:{self.seed}"

    def encode(self, x: mx.array) -> Parts:
        """Compress [B, Hkv, L, D] into packed weights uint32, scales and biases of x's dtype."""
        packed, scales, biases = mx.quantize(self.rotate(x), group_size=self.group_size, bits=self.bits)
        return packed, scales, biases

    def decode(self, parts: Parts, dtype: mx.Dtype) -> mx.array:
        """Return the vectors that attention sees, [B, Hkv, T, D], in the space of the original ones."""
        packed, scales, biases = parts
        x = mx.dequantize(packed, scales, biases, group_size=self.group_size, bits=self.bits)
        return self.unrotate(x).astype(dtype)

    def rotate(self, x: mx.array) -> mx.array:
        """Bring [..., D] into the space of the codes."""
        return x if self._rotation is None else x @ self._rotation.astype(x.dtype).T

    def unrotate(self, x: mx.array) -> mx.array:
        """Bring [..., D] back from the space of the codes."""
        return x if self._rotation is None else x @ self._rotation.astype(x.dtype)

    def scores(self, queries: mx.array, keys: Parts) -> mx.array:
        """Return the products [B, Hkv, N, T] of rotated queries [B, Hkv, N, D] with the keys."""
        return self._product(queries, keys, transpose=True)

    def weighted(self, weights: mx.array, values: Parts) -> mx.array:
        """Return the sums [B, Hkv, N, D] of the values by weights [B, Hkv, N, T], rotated."""
        return self._product(weights, values, transpose=False)

    def _product(self, x: mx.array, parts: Parts, *, transpose: bool) -> mx.array:
        packed, scales, biases = parts
        return mx.quantized_matmul(
            x, packed, scales, biases, transpose=transpose, group_size=self.group_size, bits=self.bits
        )
