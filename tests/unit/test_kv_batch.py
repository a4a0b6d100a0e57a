"""Compressed caches through mlx-lm's whole batch protocol: rows in a mixed batch against each row alone."""

from __future__ import annotations

import copy
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import LRUPromptCache, can_trim_prompt_cache, trim_prompt_cache

from optiq_core.kv.batch import BatchCompressedKVCache
from optiq_core.kv.cache import CompressedKVCache
from optiq_core.kv.codecs import codec_of
from optiq_core.kv.exact import FIRST

DIM, HEADS = 64, 2
CENTER = mx.random.normal((HEADS, 1, DIM), key=mx.random.key(123)) * 3
# A spec after "window" and a number keeps so many recent tokens as they came, and takes a center off its keys.
SPECS = (
    "affine:4:64:32", "rotated:4:64:64:5", "turboquant:3.5:64:5", "window 6 turboquant:4:64:5",
    "window 1 turboquant:2:64:5", "window 9 rotated:4:64:64:5",
)  # fmt: skip


def empty(spec: str) -> CompressedKVCache:
    if not spec.startswith("window"):
        return CompressedKVCache(codec_of(spec))
    _, window, spec = spec.split()
    return CompressedKVCache(codec_of(spec), int(window), CENTER)


def tokens(seed: int, n: int, rows: int = 1) -> tuple[mx.array, mx.array]:
    keys = mx.random.normal((rows, HEADS, n, DIM), key=mx.random.key(2 * seed))
    return keys, mx.random.normal((rows, HEADS, n, DIM), key=mx.random.key(2 * seed + 1))


def single(spec: str, seed: int, n: int) -> CompressedKVCache:
    cache = empty(spec)
    if n:
        cache.update_and_fetch(*tokens(seed, n))
    return cache


def content(cache: CompressedKVCache) -> mx.array:
    """What attention sees of a row by its codes, then what was kept as it came, [2 * Hkv, T + FIRST + R, D]."""
    assert cache.parts is not None
    used = tuple(part[:, :, : cache.offset] for part in cache.parts)
    coded = cache.codec.decode(used, mx.float32)[0]
    if cache.exact is None:
        return coded
    assert cache.exact.shape[2] == FIRST + min(cache.offset, cache.window)
    # First tokens that have not come yet may be anything.
    exact = mx.concatenate([cache.exact[0, :, : min(FIRST, cache.offset)], cache.exact[0, :, FIRST:]], axis=1)
    return mx.concatenate([coded, exact.astype(mx.float32)], axis=1)


def assert_same(found: CompressedKVCache, expected: CompressedKVCache) -> None:
    """A product's last bit may depend on the batch, and then a value on a boundary takes the other code: rarely."""
    assert found.offset == expected.offset
    if expected.offset:
        differing = mx.abs(content(found) - content(expected)).max(axis=-1) > 1e-4
        assert differing.mean().item() < 0.02


@pytest.mark.parametrize("spec", SPECS)
def test_merged_rows_attend_like_each_alone(spec: str) -> None:
    lengths = (5, 0, 300, 17)
    rows = [single(spec, i, n) for i, n in enumerate(lengths)]
    batch = rows[0].merge(copy.deepcopy(rows))
    assert batch.offset.tolist() == list(lengths)
    queries = mx.random.normal((4, 2 * HEADS, 1, DIM), key=mx.random.key(9))
    new = tokens(77, 1, rows=4)
    mask = batch.make_mask(1)
    out = batch.attend(queries, *batch.update_and_fetch(*new), scale=0.125, mask=mask)
    for i, row in enumerate(rows):
        kept = row.update_and_fetch(new[0][i : i + 1], new[1][i : i + 1])
        alone = row.attend(queries[i : i + 1], *kept, scale=0.125, mask=row.make_mask(1))
        assert mx.allclose(out[i], alone[0], atol=1e-4)
        assert_same(batch.extract(i), row)


@pytest.mark.parametrize("spec", SPECS)
def test_padded_prefill_is_the_rows_alone(spec: str) -> None:
    """Right padding during the prompt, moved to the left by `finalize`, as `PromptProcessingBatch` does it."""
    lengths = [3, 9, 1]
    batch = CompressedKVCache.merge([single(spec, 0, 0) for _ in lengths])
    data = [tokens(i, n) for i, n in enumerate(lengths)]
    padded = [
        mx.concatenate(
            [mx.pad(d[part], [(0, 0), (0, 0), (0, 9 - n), (0, 0)]) for d, n in zip(data, lengths, strict=True)]
        )
        for part in (0, 1)
    ]
    batch.prepare(lengths=lengths, right_padding=[9 - n for n in lengths])
    for begin in (0, 4, 8):
        batch.update_and_fetch(*(x[:, :, begin : begin + 4] for x in padded))
    batch.finalize()
    assert batch.offset.tolist() == lengths and batch.left_padding.tolist() == [6, 0, 8]
    for i, n in enumerate(lengths):
        assert_same(batch.extract(i), single(spec, i, n))


@st.composite
def moves(draw: st.DrawFn) -> list[tuple[str, Any]]:
    kinds = st.sampled_from(["join", "step", "leave", "trim", "copy"])
    return [(draw(kinds), draw(st.integers(0, 6))) for _ in range(draw(st.integers(1, 12)))]


@given(moves(), st.sampled_from(SPECS))
@settings(max_examples=40, deadline=None)
def test_whatever_joins_and_leaves_a_batch_its_rows_are_those_alone(script: list[tuple[str, int]], spec: str) -> None:
    rows = [single(spec, 0, 4)]
    batch = CompressedKVCache.merge([copy.deepcopy(rows[0])])
    for at, (move, n) in enumerate(script, 1):
        if move == "join":
            joining = [single(spec, 100 * at + i, length) for i, length in enumerate((n, 3 * n))]
            rows += joining
            batch.extend(CompressedKVCache.merge(copy.deepcopy(joining)))
        elif move == "step":
            keys, values = tokens(1000 + at, 1 + n, rows=len(rows))
            batch.update_and_fetch(keys, values)
            for i, row in enumerate(rows):
                row.update_and_fetch(keys[i : i + 1], values[i : i + 1])
        elif move == "leave" and len(rows) > 1:
            keep = [i for i in range(len(rows)) if i != n % len(rows)][::-1]
            rows = [rows[i] for i in keep]
            batch.filter(keep)
        elif move == "trim" and n <= min(row.offset for row in rows):
            assert batch.trim(n) == n
            for row in rows:
                row.trim(n)
        elif move == "copy":
            batch = copy.deepcopy(batch)
    assert batch.offset.tolist() == [row.offset for row in rows]
    for i, row in enumerate(rows):
        assert_same(batch.extract(i), row)


@pytest.mark.parametrize("spec", SPECS)
def test_prefix_reuse_with_mlx_lm_s_prompt_cache(spec: str) -> None:
    store = LRUPromptCache(max_size=4)
    whole = single(spec, 3, 40)
    store.insert_cache("base", list(range(40)), [whole])
    assert store.nbytes == whole.nbytes > 0
    (found,), rest = store.fetch_nearest_cache("base", [*range(30), 99])
    assert rest == [99] and found.size() == 30 and whole.size() == 40
    assert_same(found, _trimmed(copy.deepcopy(whole), 10))
    found.update_and_fetch(*tokens(8, 5))
    assert mx.array_equal(content(whole), content(single(spec, 3, 40)))


def _trimmed(cache: CompressedKVCache, n: int) -> CompressedKVCache:
    assert can_trim_prompt_cache([cache])
    assert trim_prompt_cache([cache], n) == n
    return cache


@pytest.mark.parametrize("spec", SPECS)
def test_state_makes_the_same_cache_again(spec: str) -> None:
    cache = single(spec, 1, 20)
    assert_same(CompressedKVCache.from_state(cache.state), cache)
    batch = CompressedKVCache.merge([cache, single(spec, 2, 7)])
    again = BatchCompressedKVCache.from_state(batch.state)
    assert again.offset.tolist() == [20, 7]
    assert_same(again.extract(0), cache)
    mx.eval([cache.state, batch.state])


def test_bytes_are_what_the_bits_promise() -> None:
    for bits in (2, 2.5, 3, 3.5, 4):
        cache = single(f"turboquant:{bits}:64:0", 0, 256)
        per_token = cache.nbytes / 256
        assert per_token == 2 * HEADS * (DIM * bits / 8 + 2)
    windowed = single("window 9 turboquant:4:64:0", 0, 256)
    assert windowed.nbytes == single("turboquant:4:64:0", 0, 256).nbytes + 2 * HEADS * (FIRST + 9) * DIM * 2
    assert single("affine:4:64:64", 0, 0).nbytes == 0


def test_left_padding_is_for_empty_caches() -> None:
    batch = BatchCompressedKVCache(codec_of("affine:4:64:64"), [0, 0])
    assert batch.empty() and batch.size() == 0
    batch.prepare(left_padding=[2, 0])
    assert batch.offset.tolist() == [-2, 0]
    batch.update_and_fetch(*tokens(0, 3, rows=2))
    assert not batch.empty() and batch.offset.tolist() == [1, 3]
    with pytest.raises(ValueError, match="empty cache"):
        batch.prepare(left_padding=[1, 1])
    assert np.array_equal(np.array(batch.make_mask(1))[:, 0, 0], [[False, False, True, True], [True] * 4])
