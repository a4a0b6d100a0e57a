"""The mean of each head's keys, to be taken off before they are compressed.

A head's keys lie around a mean that is far longer than what tells them apart. A query's product with that mean is the
same for every key, so compressing the mean costs precision and gains nothing. It is measured when a base is loaded, on
a piece of the package's calibration text; any constant is right, this one makes what is left small.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache, make_prompt_cache

from ..quant.calibration import read_tokens
from .config import LayerCache, UniformCache
from .exact import FIRST

_TOKENS = 256


class _Mean(KVCache):
    """Keeps the mean of the keys beside them."""

    center: mx.array | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        # A row's first tokens have keys of their own kind.
        self.center = keys[0, :, min(FIRST, keys.shape[2] - 1) :].mean(axis=1, keepdims=True)
        return super().update_and_fetch(keys, values)


def centers_for(
    wanted: UniformCache | Sequence[LayerCache] | None, model: nn.Module, tokenizer: Any
) -> dict[int, mx.array]:
    """Measure the means where any layer's cache takes them off; plain affine caches are as mlx-lm has them."""
    entries = [wanted] if isinstance(wanted, UniformCache) else wanted or []
    return key_centers(model, tokenizer) if any(entry.method != "affine" for entry in entries) else {}


def key_centers(model: nn.Module, tokenizer: Any) -> dict[int, mx.array]:
    """Measure the mean key of every head of the layers with a plain cache.

    Args:
        model: an mlx-lm model.
        tokenizer: mlx-lm's wrapper.

    Returns:
        [Hkv, 1, D] float32 by layer.
    """
    tokens = read_tokens(tokenizer, most=_TOKENS, length=_TOKENS).tokens[:1]
    caches: list[Any] = [_Mean() if type(c) is KVCache else c for c in make_prompt_cache(model)]
    # The logits are not looked at, so they are never computed.
    model(tokens, cache=caches)
    means = {i: cache.center for i, cache in enumerate(caches) if isinstance(cache, _Mean)}
    centers = {i: center.astype(mx.float32) for i, center in means.items() if center is not None}
    mx.eval(centers)
    return centers
