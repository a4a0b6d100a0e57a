"""Attention over a compressed cache: over codes, and over the tokens that are kept as they came, in one softmax."""

from __future__ import annotations

import threading

import mlx.core as mx

from .attention import group_queries, masked_softmax
from .codec import Codec, Compressed, Parts
from .exact import FIRST


def attend(
    codec: Codec,
    queries: mx.array,
    keys: Compressed,
    values: Compressed,
    *,
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None,
    padding: mx.array | None = None,
) -> mx.array:
    """Attention of queries over T cached positions, the last L of which are the queries' own.

    Args:
        codec: of keys and values.
        queries: [B, Hq, L, D].
        keys: T of them.
        values: T of them.
        scale: of the scores.
        mask: None, "causal", a boolean array (true is seen) or one to be added, broadcast to [B, Hq, L, T].
        sinks: [Hq] extra logits that take weight and carry no value.
        padding: [B] positions before each row's first token; None for rows without.

    Returns:
        [B, Hq, L, D] of the queries' dtype.
    """
    length, total, kv_heads = queries.shape[2], keys.shape[2], keys.shape[1]
    scaled = queries * scale
    if keys.exact is None or values.exact is None:
        scores = _coded_scores(codec, scaled, keys, 0, total)
        return _coded_values(codec, masked_softmax(scores, length, mask, sinks), values, 0, queries.shape)
    exact_keys, exact_values = keys.exact.astype(queries.dtype), values.exact.astype(queries.dtype)
    # Positions that the last query, and so any query, sees by their codes.
    end = total - 1 - keys.window
    if end <= 0:
        recent = (x[:, :, FIRST:] for x in (exact_keys, exact_values))
        return mx.fast.scaled_dot_product_attention(queries, *recent, scale=scale, mask=mask, sinks=sinks)
    begin = 0
    if length == 1 and mask is None and padding is None and end > FIRST:
        begin = FIRST
    else:
        mask = _shared_mask(mask, length, keys, padding)
    coded = _coded_scores(codec, scaled, keys, begin, end)
    exact = group_queries(scaled, kv_heads) @ exact_keys.swapaxes(-1, -2)
    weights = masked_softmax(mx.concatenate([coded, exact], axis=-1), length, mask, sinks)
    out = _coded_values(codec, weights[..., : end - begin], values, begin, queries.shape)
    return out + (weights[..., end - begin :] @ exact_values).reshape(queries.shape)


def _coded_scores(codec: Codec, queries: mx.array, keys: Compressed, begin: int, end: int) -> mx.array:
    """Return scores [B, Hkv, R * L, end - begin] of scaled queries with the codes of positions begin to end."""
    scores = codec.scores(group_queries(codec.rotate(queries), keys.shape[1]), _cut(keys.parts, begin, end))
    if keys.center is None:
        return scores
    return scores + group_queries(queries, keys.shape[1]) @ keys.center.astype(queries.dtype).swapaxes(-1, -2)


def _coded_values(codec: Codec, weights: mx.array, values: Compressed, begin: int, shape: tuple[int, ...]) -> mx.array:
    """Return the part of the output, [B, Hq, L, D], that comes from the codes of positions from ``begin`` on."""
    found = codec.weighted(weights, _cut(values.parts, begin, begin + weights.shape[-1]))
    return codec.unrotate(found.reshape(shape))


class _Latest(threading.local):
    """The mask that was made last: all layers of a model's step need the same one."""

    given: mx.array | str | None = None
    key: tuple[int, ...] = ()
    made: mx.array | None = None


_latest = _Latest()


def _shared_mask(mask: mx.array | str | None, length: int, keys: Compressed, padding: mx.array | None) -> mx.array:
    """Make a step's mask once. A step's layers are given one array, and have the padding that it was made for."""
    assert keys.exact is not None
    if padding is not None and not isinstance(mask, mx.array):
        return _mask(mask, length, keys, padding)
    key = (length, keys.shape[2], keys.exact.shape[2], keys.window, padding is None)
    if _latest.made is None or _latest.given is not mask or _latest.key != key:
        _latest.given, _latest.key, _latest.made = mask, key, _mask(mask, length, keys, padding)
    return _latest.made


def _mask(mask: mx.array | str | None, length: int, keys: Compressed, padding: mx.array | None) -> mx.array:
    """Say what each query sees of codes, of first tokens and of recent ones: every position in one of them at most.

    Returns:
        [B, Hq or 1, L, (T - 1 - window) + FIRST + recent], boolean or to be added.
    """
    assert keys.exact is not None
    total, recent, window = keys.shape[2], keys.exact.shape[2] - FIRST, keys.window
    rows = mx.arange(total - length, total)[:, None]
    columns = mx.arange(total)
    end = total - 1 - window
    starts = mx.zeros((1, 1, 1, 1), mx.int32) if padding is None else padding[:, None, None, None]
    first = starts + mx.arange(FIRST)
    far = columns < rows - window
    seen = [far[:, :end] & (columns[:end] >= starts + FIRST), first < rows - window, ~far[None, None, :, -recent:]]
    if isinstance(mask, str):
        mask = rows >= columns
    if mask is not None:
        mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        shape = (max(mask.shape[0], starts.shape[0]), mask.shape[1], length)
        mask = mx.broadcast_to(mask, (*shape, total))
        at = mx.broadcast_to(mx.minimum(first, total - 1), (*shape, FIRST))
        given = [mask[..., :end], mx.take_along_axis(mask, at, axis=-1), mask[..., -recent:]]
        if mask.dtype == mx.bool_:
            seen = [one & other for one, other in zip(seen, given, strict=True)]
        else:
            lowest = mx.finfo(mask.dtype).min
            seen = [mx.where(one, other, lowest) for one, other in zip(seen, given, strict=True)]
    lead = (max(x.shape[0] for x in seen), max(x.shape[1] for x in seen))
    return mx.concatenate([mx.broadcast_to(x, (*lead, length, x.shape[-1])) for x in seen], axis=-1)


def _cut(parts: Parts, begin: int, end: int) -> Parts:
    return tuple(part[:, :, begin:end] for part in parts)
