"""Checks at start that the device computes mixed batches correctly.

``gather_mm`` has been silently wrong on this shape before (MLX before 0.32.1, sorted indices). The engine does not
serve on a device where it disagrees with a loop of plain products, nor does ``segmented_mm``, where it is used.
"""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import Any

import mlx.core as mx


class ParityError(RuntimeError):
    """The device's ``gather_mm`` or ``segmented_mm`` differs from plain products."""


def parity_probe(dtype: mx.Dtype) -> float:
    """Compare ``gather_mm`` with a loop, for decode and for padded prefill, unsorted and sorted slots.

    On the CPU ``segmented_mm`` is compared too: segments that are empty, lie apart, overlap and are of any length.

    Args:
        dtype: type in which the bank computes.

    Returns:
        The largest relative difference.

    Raises:
        ParityError: it exceeds the type's tolerance.
    """
    tolerance = 1e-4 if dtype == mx.float32 else 3e-2
    worst = 0.0
    key = mx.random.key(0)
    for length in (1, 7):
        for slots in ([3, 0, 2, 2, 1, 4, 0, 3], [0, 0, 1, 2, 2, 3, 4, 4]):
            rank_in, rank_out = 64, 8
            x = mx.random.normal((len(slots), length, rank_in), key=key).astype(dtype)
            stack = mx.random.normal((5, rank_in, rank_out), key=key).astype(dtype)
            together = mx.gather_mm(x, stack, rhs_indices=mx.array(slots, mx.uint32))
            alone = mx.stack([x[i] @ stack[s] for i, s in enumerate(slots)])
            scale = mx.abs(alone).max()
            difference: Any = (mx.abs(together - alone).max() / scale).item()
            worst = max(worst, difference)
    if mx.default_device() == mx.Device(mx.cpu):
        worst = max(worst, _segments_differ(key))
    if not worst <= tolerance:
        raise ParityError(
            f"gather_mm or segmented_mm differs from plain products by {worst:.2e} (tolerance {tolerance:.0e}) on "
            f"this device with mlx {version('mlx')}; mixed-adapter batches would be wrong"
        )
    return worst


def _segments_differ(key: mx.array) -> float:
    segments = [(8, 16), (0, 0), (24, 27), (8, 16), (27, 64)]
    a, b = mx.random.normal((3, 64), key=key), mx.random.normal((64, 96), key=key)
    together = mx.segmented_mm(a, b, mx.array(segments, mx.uint32))
    alone = mx.stack([a[:, i:j] @ b[i:j] if i < j else mx.zeros((3, 96)) for i, j in segments])
    difference: Any = (mx.abs(together - alone).max() / mx.abs(alone).max()).item()
    return difference if math.isfinite(difference) else math.inf
