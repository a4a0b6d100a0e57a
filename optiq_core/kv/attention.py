"""Attention over compressed caches, inside mlx-lm's models.

mlx-lm's models call `scaled_dot_product_attention` with their cache. :func:`patch_attention` puts a version in its
place that hands the call to caches that can `attend` themselves; every other cache takes mlx-lm's way, unchanged.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

import mlx.core as mx

_NAME = "scaled_dot_product_attention"
_lock = threading.Lock()


def patch_attention() -> None:
    """Let compressed caches attend inside mlx-lm's models; calling it again changes nothing.

    Model modules that are imported later get the patched function with mlx-lm's own import of it.
    """
    from mlx_lm.models import base

    with _lock:
        original = getattr(base, _NAME)
        patched = original if hasattr(original, "unpatched") else _dispatching(original)
        original = patched.unpatched
        setattr(base, _NAME, patched)
        for name, module in list(sys.modules.items()):
            if name.startswith("mlx_lm.models.") and getattr(module, _NAME, None) is original:
                setattr(module, _NAME, patched)


def _dispatching(original: Callable[..., mx.array]) -> Any:
    @functools.wraps(original)
    def attention(  # noqa: PLR0917 - mlx-lm's own signature
        queries: mx.array, keys: Any, values: Any, cache: Any, scale: float, mask: Any, sinks: mx.array | None = None
    ) -> mx.array:
        if hasattr(cache, "attend"):
            return cache.attend(queries, keys, values, scale=scale, mask=mask, sinks=sinks)
        return original(queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks)

    attention.unpatched = original  # type: ignore[attr-defined]
    return attention


def group_queries(queries: mx.array, kv_heads: int) -> mx.array:
    """Put the query heads of a KV head one below the other: [B, Hq, L, D] to [B, Hkv, Hq/Hkv * L, D]."""
    batch, _, length, dim = queries.shape
    return queries.reshape(batch, kv_heads, -1, dim) if length else queries


def masked_softmax(scores: mx.array, length: int, mask: mx.array | str | None, sinks: mx.array | None) -> mx.array:
    """Turn scores into attention weights.

    Args:
        scores: [B, Hkv, R * L, T], rows of a KV head's R query heads one below the other; already scaled.
        length: L, queries per head; they are the last L of the T positions.
        mask: None, "causal", a boolean array (true is seen) or one to be added, broadcast to [B, Hq, L, T].
        sinks: [Hq] extra logits that take weight and carry no value.

    Returns:
        [B, Hkv, R * L, T] weights of the scores' dtype.
    """
    batch, kv_heads, rows, total = scores.shape
    heads = rows // length
    if mask is not None:
        scores = _mask(scores.reshape(batch, kv_heads, heads, length, total), mask).reshape(scores.shape)
    if sinks is None:
        return mx.softmax(scores, axis=-1, precise=True)
    extra = sinks.astype(scores.dtype).reshape(1, kv_heads, heads, 1, 1)
    extra = mx.broadcast_to(extra, (batch, kv_heads, heads, length, 1)).reshape(batch, kv_heads, rows, 1)
    return mx.softmax(mx.concatenate([extra, scores], axis=-1), axis=-1, precise=True)[..., 1:]


def _mask(scores: mx.array, mask: mx.array | str) -> mx.array:
    """Apply a mask to scores [B, Hkv, R, L, T]."""
    _, kv_heads, heads, length, total = scores.shape
    if isinstance(mask, str):
        mask = mx.arange(total - length, total)[:, None] >= mx.arange(total)
    # A mask may name every query head; those are split like the scores' heads.
    if mask.ndim >= 3:
        if mask.shape[-3] == kv_heads * heads and mask.shape[-3] > 1:
            mask = mask.reshape(*mask.shape[:-3], kv_heads, heads, *mask.shape[-2:])
        else:
            mask = mx.expand_dims(mask, -3)
    if mask.dtype == mx.bool_:
        return mx.where(mask, scores, mx.finfo(scores.dtype).min)
    return scores + mask.astype(scores.dtype)
