"""Whether loaded adapters change anything: their logits on a fixed prompt against the bare base's.

An adapter can be loaded and still leave every answer as it was (vLLM's users met that: its tensors matched no module).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..adapters.bank import BASE, AdapterBank, active

# More than one, or attention has nothing to choose from.
_TOKENS = (11, 7, 29, 3)


def probe_adapters(model: nn.Module, bank: AdapterBank, keys: Sequence[str]) -> dict[str, float]:
    """Run one forward pass with the bare base and every adapter as rows.

    Args:
        model: the base, whose modules belong to ``bank``; called by the thread that owns it.
        keys: adapters; those that are not loaded are left out.

    Returns:
        Largest absolute difference of an adapter's logits to the base's, by key: 0 for one without effect, NaN for
        logits that are not finite.
    """
    loaded = [key for key in keys if key in bank]
    if not loaded:
        return {}
    handles = [BASE, *(bank.handle(key) for key in loaded)]
    token = active.set(bank.rows(handles, [1.0] * len(handles)))
    try:
        logits = model(mx.array([_TOKENS] * len(handles))).astype(mx.float32)
    finally:
        active.reset(token)
    differences: Any = mx.abs(logits[1:] - logits[:1]).max(axis=(1, 2)).tolist()
    return {key: value if math.isfinite(value) else math.nan for key, value in zip(loaded, differences, strict=True)}
