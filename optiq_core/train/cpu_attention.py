"""Attention of a training step on the CPU: each example by itself, nothing but queries, keys and values kept.

MLX's CPU attention computes every pair of a row and keeps the probabilities for the backward pass. Here an example's
queries meet that example's keys alone, block by block and no later keys than a block's last query, and the backward
pass computes the probabilities of a block again (FlashAttention, arXiv:2205.14135).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import cast

import mlx.core as mx

from optiq_core.train import exportable
from optiq_core.train.cpu_ops import exponentials

# First and last position of an example in its row, the latter not included.
Bounds = tuple[tuple[int, int], ...]
Attention = Callable[[mx.array, mx.array, mx.array], mx.array]

# Scores of a block of queries: 1 MB of float32, but no fewer queries than pay for the block's operations.
_BLOCK = 1 << 18
_FEWEST = 48
_HIDDEN = -1e30


def causal_attention(
    queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, rows: Sequence[Bounds]
) -> mx.array:
    """Causal attention within each example; tokens of no example get zeros.

    Args:
        queries: ``[B, Hq, T, D]`` float32.
        keys, values: ``[B, Hkv, T, D]`` float32.
        scale: of the scores.
        rows: where the examples of each row lie, in order.

    Returns:
        ``[B, Hq, T, D]``.
    """
    if exportable.is_exporting():
        frozen = (mx.stop_gradient(queries), mx.stop_gradient(keys), mx.stop_gradient(values))
        found = _attend(frozen, rows, scale)
        block = max(end - begin for begin, end, _ in _blocks(rows[0], _grouped(queries, keys).shape))
        return exportable.attention(found, queries, keys, values, block)
    return _attention(tuple(rows), scale)(queries, keys, values)


def _attend(inputs: tuple[mx.array, mx.array, mx.array], rows: Sequence[Bounds], scale: float) -> mx.array:
    queries, keys, values = inputs
    grouped = _grouped(queries, keys)
    found = []
    for row, bounds in enumerate(rows):
        parts: list[mx.array] = []
        for begin, end, first in _blocks(bounds, grouped.shape):
            asked = _after(grouped[row], parts[-1:])
            weights, total = _weights(asked, keys[row], (begin, end, first), scale)
            part = (weights @ values[row, :, first:end]) / total
            parts.append(part.reshape(*grouped.shape[1:3], end - begin, -1))
        found.append(_joined(parts, bounds, grouped[row], axis=2))
    return mx.stack(found).reshape(queries.shape)


@lru_cache(maxsize=8)
def _attention(rows: tuple[Bounds, ...], scale: float) -> Attention:
    @mx.custom_function
    def attention(queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
        return _attend((queries, keys, values), rows, scale)

    @attention.vjp
    def slopes(inputs: Sequence[mx.array], slope: mx.array, output: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        queries, keys, values = inputs
        grouped, slope = _grouped(queries, keys), _grouped(slope, keys)
        found: tuple[list[mx.array], ...] = ([], [], [])
        for row, bounds in enumerate(rows):
            of_queries: list[mx.array] = []
            of_keys: list[mx.array] = []
            of_values: list[mx.array] = []
            for begin, end, first in _blocks(bounds, grouped.shape):
                asked = _after(grouped[row], of_queries[-1:] + of_keys[-1:] + of_values[-1:])
                weights, total = _weights(asked, keys[row], (begin, end, first), scale)
                seen = slice(first, end)
                # Rows' sums divide the small side of the products.
                towards = _rows(slope[row, :, :, begin:end]) / total
                change = towards @ values[row, :, seen].swapaxes(-1, -2)
                change = weights * (change - (weights * change).sum(axis=-1, keepdims=True) / total)
                part = (change @ keys[row, :, seen]) * scale
                of_queries.append(part.reshape(*grouped.shape[1:3], end - begin, -1))
                key = (change.swapaxes(-1, -2) @ _rows(grouped[row, :, :, begin:end])) * scale
                value = weights.swapaxes(-1, -2) @ towards
                if begin > first:
                    # An example's earlier blocks: their keys were seen by this block too.
                    behind = begin - first
                    key = mx.concatenate([of_keys.pop() + key[:, :behind], key[:, behind:]], axis=1)
                    value = mx.concatenate([of_values.pop() + value[:, :behind], value[:, behind:]], axis=1)
                of_keys.append(key)
                of_values.append(value)
            found[0].append(_joined(of_queries, bounds, grouped[row], axis=2))
            found[1].append(_joined(of_keys, bounds, keys[row], axis=1))
            found[2].append(_joined(of_values, bounds, values[row], axis=1))
        return mx.stack(found[0]).reshape(queries.shape), mx.stack(found[1]), mx.stack(found[2])

    return cast(Attention, attention)


def _blocks(bounds: Bounds, shape: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """First and last query of each block, the latter not included, and the first key of its example."""
    heads = shape[1] * shape[2]
    for first, last in bounds:
        step = max(_FEWEST, _BLOCK // (heads * (last - first)))
        for begin in range(first, last, step):
            yield begin, min(begin + step, last), first


def _after(array: mx.array, done: list[mx.array]) -> mx.array:
    """All of a block before any of the next: MLX goes breadth-first, and every block's weights would live at once."""
    return cast(mx.array, mx.depends(array, done)) if done else array


def _weights(grouped: mx.array, keys: mx.array, block: tuple[int, int, int], scale: float) -> tuple[mx.array, mx.array]:
    """Unnormalised probabilities ``[Hkv, R * L, S]`` of a block of one row, and their sums."""
    begin, end, first = block
    scores = _rows(grouped[:, :, begin:end]) @ keys[:, first:end].swapaxes(-1, -2)
    hidden = mx.arange(begin, end)[:, None] < mx.arange(first, end)
    scores = (scores.reshape(-1, *hidden.shape) + mx.where(hidden, _HIDDEN, 0.0)).reshape(scores.shape)
    weights = exponentials(scores, scores.max(axis=-1, keepdims=True), scale)
    return weights, weights.sum(axis=-1, keepdims=True)


def _grouped(queries: mx.array, keys: mx.array) -> mx.array:
    """``[B, Hq, T, D]`` as ``[B, Hkv, R, T, D]``: the queries of a KV head together."""
    batch, heads, length, dims = queries.shape
    return queries.reshape(batch, keys.shape[1], heads // keys.shape[1], length, dims)


def _rows(grouped: mx.array) -> mx.array:
    """``[Hkv, R, L, D]`` as ``[Hkv, R * L, D]``: one product for all queries of a KV head."""
    return grouped.reshape(grouped.shape[0], -1, grouped.shape[-1])


def _joined(parts: list[mx.array], bounds: Bounds, like: mx.array, axis: int) -> mx.array:
    """The parts one after the other, and zeros for what lies behind the last example."""
    rest = like.shape[axis] - (bounds[-1][1] if bounds else 0)
    if rest:
        shape = list(like.shape)
        shape[axis] = rest
        parts = [*parts, mx.zeros(shape, like.dtype)]
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=axis)
