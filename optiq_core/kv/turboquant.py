"""TurboQuant: vector quantization of keys and values in a randomly rotated space.

A vector is rotated, divided by its norm, and every coordinate is replaced by the nearest of the centroids that are best
for coordinates of random unit vectors (:mod:`optiq_core.kv.codebook`). Kept are the packed codes and one float16 per
vector, so that the vector that attention sees has the norm of the original. Attention stays in the rotated space: the
query is rotated once (after RoPE), the output is rotated back once, and no key ever is.

    from optiq_core.kv.turboquant import TurboQuantKVCache, patch_attention

    patch_attention()
    cache = model.make_cache()
    for i, layer in enumerate(model.layers):
        if hasattr(layer, "self_attn"):
            cache[i] = TurboQuantKVCache(head_dim=layer.self_attn.head_dim, bits=4, seed=42 + i)

Zandieh et al., "TurboQuant: Online Vector Quantization with Near-optimal Distortion Rate", arXiv:2504.19874; this is
its mean-squared-error form. Its inner-product form spends a bit on an unbiased estimate, which softmax then punishes:
its measured divergence was higher at equal bits.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from . import fused
from .attention import patch_attention
from .cache import CompressedKVCache
from .codebook import codebook
from .codec import Parts
from .config import DEFAULT_WINDOW
from .packing import Lookup, channel_order, pack, packed_bytes
from .rotation import random_rotation

__all__ = ["TurboQuantCodec", "TurboQuantKVCache", "patch_attention"]

# Dense floats of one block of positions; half of a core's second-level cache.
_BLOCK_BYTES = 1 << 20
_NORM_DTYPE = mx.float16
_LARGEST_NORM = 65504.0


class TurboQuantCodec:
    """Rotates, normalizes and codes vectors of a head.

    Args:
        head_dim: channels of a head, a multiple of 8 (of 16 for 2.5 and 3.5 bits).
        bits: 1 to 8, or 2.5 or 3.5: half of the channels at the bits above, half at the bits below.
        seed: of the rotation.

    Raises:
        ValueError: the head dimension or the bits are out of range.
    """

    def __init__(self, head_dim: int, bits: float, seed: int) -> None:
        self.dim, self.bits, self.seed = head_dim, bits, seed
        self._splits = _splits(head_dim, bits)
        self._rotation = random_rotation(head_dim, seed)
        # Channels in the order in which packing brings them back, so that look-ups come out in the rotation's own.
        order, start = [], 0
        for width, part_bits in self._splits:
            order.append(start + np.argsort(channel_order(width, part_bits)))
            start += width
        self._encoding = self._rotation[mx.array(np.concatenate(order))].T
        mx.eval(self._encoding)

    def __deepcopy__(self, memo: dict[int, Any]) -> TurboQuantCodec:
        return self

    @property
    def spec(self) -> str:
        """``turboquant:BITS:DIM:SEED``."""
        return f"turboquant:{self.bits:g}:{self.dim}:{self.seed}"

    @property
    def bytes_per_vector(self) -> int:
        """Bytes of a key or a value: its codes and its norm."""
        return sum(packed_bytes(width, bits) for width, bits in self._splits) + _NORM_DTYPE.size

    def encode(self, x: mx.array) -> Parts:
        """Compress [B, Hkv, L, D].

        Returns:
            Codes, one array [B, Hkv, L, bytes] uint8 for each run of channels of the same bits, and scales
            [B, Hkv, L, 1] float16.
        """
        x = x.astype(mx.float32)
        norm = mx.linalg.norm(x, axis=-1, keepdims=True)
        unit = (x @ self._encoding) / mx.maximum(norm, mx.finfo(mx.float32).smallest_normal)
        packed, squares, start = [], mx.zeros(norm.shape), 0
        for width, bits in self._splits:
            codes, values = _encoder(self.dim, bits)(unit[..., start : start + width])
            packed.append(pack(codes, bits))
            squares = squares + mx.square(values).sum(axis=-1, keepdims=True)
            start += width
        scale = mx.minimum(norm * mx.rsqrt(squares), _LARGEST_NORM)
        return *packed, scale.astype(_NORM_DTYPE)

    def decode(self, parts: Parts, dtype: mx.Dtype) -> mx.array:
        """Return the vectors that attention sees, [B, Hkv, T, D], in the space of the original ones."""
        *codes, scale = parts
        rotated = mx.concatenate(self._runs(codes, mx.float32), axis=-1)
        return ((rotated * scale.astype(mx.float32)) @ self._rotation).astype(dtype)

    def rotate(self, x: mx.array) -> mx.array:
        """Bring [..., D] into the space of the codes."""
        return x @ self._rotation.astype(x.dtype).T

    def unrotate(self, x: mx.array) -> mx.array:
        """Bring [..., D] back from the space of the codes."""
        return x @ self._rotation.astype(x.dtype)

    def scores(self, queries: mx.array, keys: Parts) -> mx.array:
        """Return the products [B, Hkv, N, T] of rotated queries [B, Hkv, N, D] with the keys."""
        if not fused.usable(self.dim, self._splits, queries.shape[2]):
            return self.plain_scores(queries, keys)
        codes, norms = keys
        return fused.scores(queries, codes, norms, self._splits[0][1])

    def weighted(self, weights: mx.array, values: Parts) -> mx.array:
        """Return the sums [B, Hkv, N, D] of the values by weights [B, Hkv, N, T], rotated."""
        if not fused.usable(self.dim, self._splits, weights.shape[2]):
            return self.plain_weighted(weights, values)
        codes, norms = values
        scaled = weights * norms.astype(weights.dtype).swapaxes(-1, -2)
        return fused.weighted(scaled, codes, self.dim, self._splits[0][1])

    def plain_scores(self, queries: mx.array, keys: Parts) -> mx.array:
        """Return scores [B, Hkv, N, T] of rotated queries [B, Hkv, N, D]."""
        *codes, scale = keys
        blocks = []
        for block in self._blocks(codes, queries.dtype):
            runs = self._runs(block, queries.dtype)
            edges = list(itertools.accumulate(run.shape[-1] for run in runs))[:-1]
            parts = zip(mx.split(queries, edges, axis=-1), runs, strict=True)
            blocks.append(functools.reduce(operator.add, (part @ run.swapaxes(-1, -2) for part, run in parts)))
        scores = blocks[0] if len(blocks) == 1 else mx.concatenate(blocks, axis=-1)
        return scores * scale.astype(queries.dtype).swapaxes(-1, -2)

    def plain_weighted(self, weights: mx.array, values: Parts) -> mx.array:
        """Return the rotated output [B, Hkv, N, D] of weights [B, Hkv, N, T]."""
        *codes, scale = values
        weights = weights * scale.astype(weights.dtype).swapaxes(-1, -2)
        sums, start = [], 0
        for block in self._blocks(codes, weights.dtype):
            stop = start + block[0].shape[2]
            parts = [weights[..., start:stop] @ run for run in self._runs(block, weights.dtype)]
            sums.append(parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1))
            start = stop
        return functools.reduce(operator.add, sums)

    def _runs(self, codes: Sequence[mx.array], dtype: mx.Dtype) -> list[mx.array]:
        """Return the centroids of codes as runs of channels, still rotated and without their scale."""
        return [
            run
            for part, (width, bits) in zip(codes, self._splits, strict=True)
            for run in _lookup(self.dim, bits, dtype)(part, width)
        ]

    def _blocks(self, codes: Sequence[mx.array], dtype: mx.Dtype) -> list[list[mx.array]]:
        """Cut T positions into blocks whose dense form stays near the core."""
        batch, heads, total, _ = codes[0].shape
        step = max(256, _BLOCK_BYTES // (batch * heads * self.dim * dtype.size) // 256 * 256)
        if total <= step:
            return [list(codes)]
        return [[part[:, :, begin : begin + step] for part in codes] for begin in range(0, total, step)]


class TurboQuantKVCache(CompressedKVCache):
    """A cache of one sequence per row, all of one length; :func:`patch_attention` lets mlx-lm's models use it.

    Args:
        head_dim: channels of a head, a multiple of 8 (of 16 for 2.5 and 3.5 bits).
        bits: 1 to 8, or 2.5 or 3.5.
        seed: of the rotation; use another one in every layer.
        window: recent tokens to keep as they came, beside the first ones; 0 for none.
        center: [Hkv, 1, D], about the mean of each head's keys, if it is known.
    """

    def __init__(
        self,
        head_dim: int,
        bits: float = 4,
        seed: int = 42,
        *,
        window: int = DEFAULT_WINDOW,
        center: mx.array | None = None,
    ) -> None:
        super().__init__(_codec(head_dim, bits, seed), window, center)


@functools.cache
def _codec(head_dim: int, bits: float, seed: int) -> TurboQuantCodec:
    return TurboQuantCodec(head_dim, bits, seed)


def _splits(dim: int, bits: float) -> list[tuple[int, int]]:
    """Return (channels, bits) of the parts of a vector."""
    if bits in (2.5, 3.5):
        if dim % 16:
            raise ValueError(f"{bits} bits need a head dimension that is a multiple of 16, got {dim}")
        return [(dim // 2, int(bits) + 1), (dim // 2, int(bits))]
    if bits != int(bits) or not 1 <= bits <= 8:
        raise ValueError(f"TurboQuant bits are 1 to 8, 2.5 or 3.5, got {bits}")
    packed_bytes(dim, int(bits))
    return [(dim, int(bits))]


class _Encoder:
    """Nearest centroids through a table over small bins: one look-up and one comparison per coordinate."""

    def __init__(self, dim: int, bits: int) -> None:
        book = codebook(dim, bits)
        reach = float(book.centroids[-1])
        spacing = float(np.min(np.diff(book.centroids)))
        # No bin holds two boundaries.
        self._bins = 1 << int(np.ceil(np.log2(4 * reach / spacing)))
        self._low, self._per_unit = -reach, self._bins / (2 * reach)
        starts = self._low + np.arange(self._bins) / self._per_unit
        below = np.searchsorted(book.boundaries, starts, side="left")
        self._below = mx.array(below.astype(np.uint8))
        # A code's own upper boundary; the last code has none.
        self._upper = mx.array(np.append(book.boundaries, np.inf).astype(np.float32))
        self._centroids = mx.array(book.centroids.astype(np.float32))
        mx.eval(self._below, self._upper, self._centroids)

    def __call__(self, unit: mx.array) -> tuple[mx.array, mx.array]:
        """Return codes [..., D] uint8 and their centroids [..., D] float32."""
        flat = unit.reshape(-1)
        bins = mx.clip((flat - self._low) * self._per_unit, 0, self._bins - 1).astype(mx.uint32)
        low = mx.take_along_axis(self._below, bins, axis=0)
        codes = low + (flat > mx.take_along_axis(self._upper, low, axis=0)).astype(mx.uint8)
        values = mx.take_along_axis(self._centroids, codes, axis=0)
        return codes.reshape(unit.shape), values.reshape(unit.shape)


@functools.cache
def _encoder(dim: int, bits: int) -> _Encoder:
    return _Encoder(dim, bits)


@functools.cache
def _lookup(dim: int, bits: int, dtype: mx.Dtype) -> Lookup:
    return Lookup(codebook(dim, bits).centroids, bits, dtype)
