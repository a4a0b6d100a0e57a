"""Attention of the CPU profile: a softmax whose exponentials are vectorised, and no scores that nobody sees.

MLX's CPU softmax spends 18 ns on an ``exp``; behind 2,000 tokens that is most of what a prompt costs. Here ``exp`` is a
polynomial and a power of two in kernels that the compiler vectorises, about 1.5 ns. Queries go block by block, so that
a block's scores stay in the cache and keys after a block's last query are never multiplied. Weights are divided by
their sum after they have multiplied the values (FlashAttention, arXiv:2205.14135, does so too).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import base as models
from mlx_lm.models import llama, qwen2, qwen3
from mlx_lm.models.cache import BatchKVCache, KVCache

# Classes whose forward pass is that of Llama's attention, queries and keys normalised before in Qwen 3.
ATTENTION_CLASSES = (llama.Attention, qwen2.Attention, qwen3.Attention)

# Scores of a block of queries: 2 MB of float32.
_BLOCK = 1 << 19
# Keys lie in order in these, so no mask shows a query a key after its own.
_IN_ORDER = (KVCache, BatchKVCache)
_LOG2_E = 1.4426950408889634
# The two parts of ln 2: multiples of the first are exact in float32 (Cody and Waite).
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
# Adding and subtracting it rounds a float32 to an integer.
_ROUND = 12582912.0
# Weights below exp(-40) of the largest change no float32 sum; far smaller ones would make its products denormal.
_LOWEST = -40.0


class BlockedAttention(nn.Module):
    """The attention block of Llama's family: rotated queries and keys, normalised before in Qwen 3.

    Args:
        attention: the module that it replaces; its modules keep their paths.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        for name, module in attention.children().items():
            self[name] = module
        self.n_heads, self.n_kv_heads, self.scale = attention.n_heads, attention.n_kv_heads, attention.scale

    def __call__(self, x: mx.array, mask: mx.array | str | None = None, cache: Any = None) -> mx.array:
        queries, keys, values = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        offset = 0 if cache is None else cache.offset
        queries = self.rope(self._heads(queries, self.n_heads, "q_norm"), offset=offset)
        keys = self.rope(self._heads(keys, self.n_kv_heads, "k_norm"), offset=offset)
        values = self._heads(values, self.n_kv_heads)
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)
        if cache is None or type(cache) in _IN_ORDER:
            seen = attend(queries, keys, values, scale=self.scale, mask=mask)
        else:
            # Compressed caches attend by themselves.
            seen = models.scaled_dot_product_attention(queries, keys, values, cache=cache, scale=self.scale, mask=mask)
        return self.o_proj(seen.swapaxes(1, 2).reshape(*x.shape[:2], -1))

    def _heads(self, y: mx.array, count: int, norm: str = "") -> mx.array:
        y = y.reshape(*y.shape[:2], count, -1)
        return (self[norm](y) if norm in self else y).swapaxes(1, 2)


def attend(
    queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: mx.array | str | None
) -> mx.array:
    """Attention of the last L of T positions; a mask hides at least the keys after a query's own.

    Args:
        queries: [B, Hq, L, D] float32.
        keys, values: [B, Hkv, T, D] float32, in the order of the positions.
        scale: of the scores.
        mask: None for one query that sees everything; "causal"; or what is seen, boolean, or what is added to the
            scores, broadcast to [B, 1, L, T].

    Returns:
        [B, Hq, L, D].
    """
    batch, heads, length, dims = queries.shape
    kv_heads, total = keys.shape[1], keys.shape[2]
    # Query heads of a KV head lie below each other: one product for all of them.
    grouped = queries.reshape(batch, kv_heads, heads // kv_heads, length, dims)
    if mask is None and length > 1:
        parts = [_block(grouped, keys, values, scale, None)]
    else:
        if isinstance(mask, str):
            mask = mx.arange(total - length, total)[:, None] >= mx.arange(total)
        step = max(1, _BLOCK // (batch * heads * total))
        parts = []
        for begin in range(0, length, step):
            end = min(begin + step, length)
            seen = total - length + end
            cut = None if mask is None else mask[..., begin:end, :seen]
            parts.append(_block(grouped[..., begin:end, :], keys[:, :, :seen], values[:, :, :seen], scale, cut))
    found = parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=3)
    return found.reshape(batch, heads, length, dims)


def _block(queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | None) -> mx.array:
    """Return [B, Hkv, R, L, D] for queries of that shape."""
    batch, kv_heads, repeats, length, dims = queries.shape
    scores = queries.reshape(batch, kv_heads, repeats * length, dims) @ keys.swapaxes(-1, -2)
    if mask is not None:
        if mask.ndim == 4:
            mask = mask[:, :, None]
        split = scores.reshape(batch, kv_heads, repeats, length, -1)
        # Masks that are added come unscaled.
        split = (
            mx.where(mask, split, mx.finfo(mx.float32).min) if mask.dtype == mx.bool_ else split + mask * (1 / scale)
        )
        scores = split.reshape(scores.shape)
    mantissa, power = exp_parts(scale)(scores, scores.max(axis=-1, keepdims=True))
    weights = mantissa * mx.view(power, mx.float32)
    found = (weights @ values) / weights.sum(axis=-1, keepdims=True)
    return found.reshape(batch, kv_heads, repeats, length, dims)


@functools.cache
def exp_parts(scale: float) -> Callable[[mx.array, mx.array], tuple[mx.array, mx.array]]:
    """Return what splits ``exp(scale * (x - most))`` into a number near 1 and the bits of a power of two.

    The polynomial is Cephes' for float32; the product is within 2e-7 of the true value.
    """

    @functools.partial(mx.compile, shapeless=True)
    def parts(x: mx.array, most: mx.array) -> tuple[mx.array, mx.array]:
        t = mx.maximum((x - most) * scale, _LOWEST)
        power = (t * _LOG2_E + _ROUND) - _ROUND
        r = (t - power * _LN2_HIGH) - power * _LN2_LOW
        p = r * 1.9875691500e-4 + 1.3981999507e-3
        p = p * r + 8.3334519073e-3
        p = p * r + 4.1665795894e-2
        p = p * r + 1.6666665459e-1
        p = p * r + 5.0000001201e-1
        return p * r * r + r + 1.0, ((power + 127.0) * 8388608.0).astype(mx.int32)

    return parts
