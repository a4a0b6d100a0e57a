"""Tokens that are kept as they came, and keys without their mean: against dense attention over what must be seen."""

from __future__ import annotations

import mlx.core as mx
import pytest

from optiq_core.kv.cache import CompressedKVCache
from optiq_core.kv.centers import centers_for, key_centers
from optiq_core.kv.codecs import codec_of
from optiq_core.kv.config import LayerCache, UniformCache, parse_uniform
from optiq_core.kv.exact import FIRST
from optiq_core.kv.factory import plan_caches

from .tiny import tiny_base

DIM, HEADS, RATIO, WINDOW = 64, 2, 3, 7
SCALE = DIM**-0.5
CENTER = mx.random.normal((HEADS, 1, DIM), key=mx.random.key(40)) * 2
CODECS = ("turboquant:3:64:5", "rotated:4:64:64:5", "affine:4:64:64")


def vectors(seed: int, n: int) -> tuple[mx.array, mx.array, mx.array]:
    """Queries, keys about CENTER, and values of one row, as halves hold them."""
    queries, keys, values = (
        mx.random.normal((1, heads, n, DIM), key=mx.random.key(100 * seed + i))
        for i, heads in enumerate((RATIO * HEADS, HEADS, HEADS))
    )
    return queries, (keys + CENTER).astype(mx.float16).astype(mx.float32), values.astype(mx.float16).astype(mx.float32)


def expected(spec: str, vectors: tuple[mx.array, ...], window: int, sinks: mx.array | None = None) -> mx.array:
    """Dense attention in which a query sees the first tokens and the last ones as they came, all others by codes."""
    queries, keys, values = vectors
    codec, n = codec_of(spec), keys.shape[2]
    coded = [
        codec.decode(codec.encode(keys - CENTER), mx.float32) + CENTER,
        codec.decode(codec.encode(values), mx.float32),
    ]
    at = mx.arange(n)
    exact = (at[:, None] - at <= window) | (at < FIRST)
    out = []
    for row in range(n):
        seen = [mx.where(exact[row][:, None], x, y) for x, y in zip((keys, values), coded, strict=True)]
        out.append(
            mx.fast.scaled_dot_product_attention(
                queries[:, :, row : row + 1], *(x[:, :, : row + 1] for x in seen), scale=SCALE, sinks=sinks
            )
        )
    return mx.concatenate(out, axis=2)


def run(cache: CompressedKVCache, vectors: tuple[mx.array, ...], chunks: list[int]) -> mx.array:
    out, begin = [], 0
    for n in chunks:
        queries, keys, values = (x[:, :, begin : begin + n] for x in vectors)
        mask = cache.make_mask(n)
        out.append(cache.attend(queries, *cache.update_and_fetch(keys, values), scale=SCALE, mask=mask))
        begin += n
    return mx.concatenate(out, axis=2)


@pytest.mark.parametrize("spec", CODECS)
@pytest.mark.parametrize("chunks", [[40], [1] * 40, [3, 20, 1, 1, 15], [2, 2, 2, 34]])
def test_queries_see_first_and_recent_tokens_as_they_came_in_whatever_chunks(spec: str, chunks: list[int]) -> None:
    data = vectors(1, 40)
    found = run(CompressedKVCache(codec_of(spec), WINDOW, CENTER), data, chunks)
    assert mx.allclose(found, expected(spec, data, WINDOW), atol=2e-4)


@pytest.mark.parametrize("window", [1, 2, 39, 60])
def test_windows_of_any_width(window: int) -> None:
    data = vectors(2, 40)
    found = run(CompressedKVCache(codec_of(CODECS[0]), window, CENTER), data, [5, 1, 30, 1, 1, 1, 1])
    assert mx.allclose(found, expected(CODECS[0], data, window), atol=2e-4)


def test_attention_sinks_and_given_masks() -> None:
    data = vectors(3, 40)
    queries, keys, values = data
    for mask in (mx.arange(40)[:, None] >= mx.arange(40), mx.where(mx.arange(40)[:, None] >= mx.arange(40), 0.0, -1e9)):
        cache = CompressedKVCache(codec_of(CODECS[0]), WINDOW, CENTER)
        sinks = mx.arange(RATIO * HEADS) / 2
        kept = cache.update_and_fetch(keys, values)
        found = cache.attend(queries, *kept, scale=SCALE, mask=mask, sinks=sinks)
        assert mx.allclose(found, expected(CODECS[0], data, WINDOW, sinks), atol=2e-4)


def test_rows_of_a_batch_see_what_they_see_alone() -> None:
    """Rows that are shorter than what is kept of first tokens, than the window, and longer than both."""
    lengths, steps = (2, 9, 30, 0), 12
    data = [vectors(10 + i, n + steps) for i, n in enumerate(lengths)]
    rows = [CompressedKVCache(codec_of(CODECS[0]), WINDOW, CENTER) for _ in lengths]
    for row, (_, keys, values), n in zip(rows, data, lengths, strict=True):
        if n:
            row.update_and_fetch(keys[:, :, :n], values[:, :, :n])
    batch = CompressedKVCache.merge(rows)
    wanted = [expected(CODECS[0], one, WINDOW)[:, :, n:] for one, n in zip(data, lengths, strict=True)]
    begin = 0
    for chunk in (1, 1, 3, 1, 6):
        new = [
            mx.concatenate([x[:, :, n + begin : n + begin + chunk] for x, n in zip(kind, lengths, strict=True)])
            for kind in zip(*data, strict=True)
        ]
        mask = batch.make_mask(chunk)
        found = batch.attend(new[0], *batch.update_and_fetch(new[1], new[2]), scale=SCALE, mask=mask)
        for i, want in enumerate(wanted):
            assert mx.allclose(found[i], want[0, :, begin : begin + chunk], atol=2e-4), (i, begin)
        begin += chunk


def test_tokens_that_come_into_the_window_by_trimming_are_seen_by_their_codes() -> None:
    data = vectors(4, 40)
    cache = CompressedKVCache(codec_of(CODECS[0]), WINDOW, CENTER)
    run(cache, data, [40])
    cache.trim(5)
    queries, keys, values = (x[:, :, 35:36] for x in data)
    out = cache.attend(queries, *cache.update_and_fetch(keys, values), scale=SCALE, mask=None)
    codec = cache.codec
    coded = [codec.decode(codec.encode(data[1] - CENTER), mx.float32) + CENTER]
    coded.append(codec.decode(codec.encode(data[2]), mx.float32))
    # Of the window's 33 to 39, 33 and 34 are left, and 35 is new.
    at = mx.arange(36)
    exact = ((at >= 33) | (at < FIRST))[:, None]
    seen = [mx.where(exact, x[:, :, :36], y[:, :, :36]) for x, y in zip(data[1:], coded, strict=True)]
    dense = mx.fast.scaled_dot_product_attention(queries, *seen, scale=SCALE)
    assert mx.allclose(out, dense, atol=3e-3)
    assert cache.exact is not None and cache.exact.shape[2] == FIRST + WINDOW


def test_a_row_trimmed_to_its_beginning_keeps_its_first_tokens_as_they_came() -> None:
    data = vectors(5, 40)
    cache = CompressedKVCache(codec_of(CODECS[0]), WINDOW, CENTER)
    run(cache, data, [40])
    cache.trim(36)
    queries, keys, values = (x[:, :, 4:5] for x in data)
    found = cache.attend(queries, *cache.update_and_fetch(keys, values), scale=SCALE, mask=None)
    assert mx.allclose(found, expected(CODECS[0], data, WINDOW)[:, :, 4:5], atol=2e-4)


def test_centers_are_the_means_of_keys_and_make_codes_truer() -> None:
    base = tiny_base(hidden=256)
    centers = key_centers(base.model, base.tokenizer)
    assert {i: c.shape for i, c in centers.items()} == {0: (2, 1, 64), 1: (2, 1, 64)}
    assert centers_for(parse_uniform("affine:4"), base.model, base.tokenizer) == {}
    assert centers_for(None, base.model, base.tokenizer) == {}
    assert set(centers_for([LayerCache(1, 4, method="rotated")], base.model, base.tokenizer)) == {0, 1}
    plan = plan_caches(base.model, UniformCache("turboquant", 2, 0), centers)
    assert plan.windows == {} and plan.window_bytes == 0 and set(plan.centers) == {0, 1}
    assert not plan_caches(base.model, UniformCache("affine", 2), centers).centers
    codec, (_, keys, _) = codec_of("turboquant:3:64:5"), vectors(6, 50)
    plain = mx.linalg.norm(codec.decode(codec.encode(keys), mx.float32) - keys)
    centered = mx.linalg.norm(codec.decode(codec.encode(keys - CENTER), mx.float32) + CENTER - keys)
    assert centered < 0.6 * plain


def test_a_plan_counts_the_window_beside_the_tokens() -> None:
    model = tiny_base(hidden=256).model
    plan = plan_caches(model, parse_uniform("turboquant:4"))
    assert plan.bytes_per_token == 2 * 2 * 2 * (32 + 2)
    assert plan.window_bytes == 2 * 2 * 2 * (FIRST + 64) * 64 * 2
    caches = plan(model)
    model(mx.zeros((1, 256), mx.int32), cache=caches)
    assert sum(cache.nbytes for cache in caches) == 256 * plan.bytes_per_token + plan.window_bytes
