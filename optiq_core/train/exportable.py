"""What the planner traces in place of operations with gradients of their own, which MLX cannot export.

They keep and allocate what those do, in both passes; their values mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import mlx.core as mx

_exporting: ContextVar[bool] = ContextVar("exporting", default=False)


@contextmanager
def exporting() -> Iterator[None]:
    """While entered, :func:`is_exporting` is true."""
    token = _exporting.set(True)
    try:
        yield
    finally:
        _exporting.reset(token)


def is_exporting() -> bool:
    """Whether a graph is being exported instead of computed."""
    return _exporting.get()


def spread(x: mx.array, buffers: int) -> mx.array:
    """As many buffers as large as ``x`` in each pass: MLX splits a long compiled function, with arrays in between."""
    parts = [x * float(at + 2) for at in range(buffers)]
    return sum(parts[1:], parts[0])


def exponentials(x: mx.array, most: mx.array) -> mx.array:
    """See :func:`optiq_core.train.cpu_ops.exponentials`."""
    return spread(x - most, 4)


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """Keeps both."""
    return spread(gate, 3) * up


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """Keeps the weights and their sums; the gradient is written over the weights."""
    frozen = mx.stop_gradient(logits)
    most = frozen.max(axis=-1, keepdims=True)
    at_target = mx.take_along_axis(frozen, targets[:, None], axis=-1)
    weights = exponentials(frozen, most)
    total = weights.sum(axis=-1, keepdims=True)
    reading = mx.log(total) + most - at_target
    return (reading + ((logits * weights).sum(axis=-1, keepdims=True) / total))[:, 0]


def attention(found: mx.array, queries: mx.array, keys: mx.array, values: mx.array, block: int) -> mx.array:
    """``found`` with a gradient at queries, keys and values that keeps these, and works on scores of one block.

    Args:
        found: ``[B, Hq, T, D]``, without a gradient.
        queries, keys, values: see :func:`optiq_core.train.cpu_attention.causal_attention`.
        block: queries of a block.
    """
    heads, kv_heads, length = queries.shape[1], keys.shape[1], keys.shape[2]
    rows = queries[0, :, :block].reshape(kv_heads, heads // kv_heads * block, -1)
    scores = (rows[..., :1] * keys[0, :, None, :, 0]).sum(axis=-1, keepdims=True)
    seen = (rows[..., 1:2] * values[0, :, None, :, 0]).sum(axis=-1, keepdims=True)
    touched = (scores + seen).reshape(1, heads, block, 1)
    # Every input is kept as a whole: a column holds on to all of them.
    columns = queries[..., :1] * queries[..., 1:2] + mx.repeat(
        keys[..., 1:2] * values[..., 1:2], heads // kv_heads, axis=1
    )
    rest = mx.zeros((1, heads, length - block, 1), queries.dtype)
    return found + (mx.concatenate([touched, rest], axis=2) + columns)
