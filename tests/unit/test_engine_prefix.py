"""The prefix cache: who hits what, how much it keeps, and that answers stay what they were."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.models.cache import ArraysCache, KVCache, RotatingKVCache

from optiq_core.engine.engine import Engine
from optiq_core.engine.memory import row_cost
from optiq_core.engine.prefix import MIN_TOKENS, PrefixCache
from optiq_core.kv.config import parse_uniform
from optiq_core.kv.factory import plan_caches
from tests.unit.engine_run import Run, request
from tests.unit.tiny import tiny_base, tiny_model, write_mlx_adapter

SYSTEM = tuple(range(1, 41))


def kv(length: int) -> list[Any]:
    cache = KVCache()
    values = mx.arange(length, dtype=mx.float32)[None, None, :, None]
    cache.update_and_fetch(values, values)
    return [cache]


def tokens(*ids: int) -> Any:
    return np.array(ids, np.int64)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=40), max_size=12), st.lists(st.integers(0, 2)))
def test_the_longest_common_prefix_is_found(known: list[list[int]], prompt: list[int]) -> None:
    cache = PrefixCache(1 << 30)
    for entry in known:
        cache.store("n", entry, kv(len(entry)))

    def common(entry: list[int]) -> int:
        limit = min(len(entry), len(prompt) - 1)
        return next((i for i in range(limit) if entry[i] != prompt[i]), max(limit, 0))

    longest = max((common(entry) for entry in known), default=0)
    caches, held = cache.fetch("n", tokens(*prompt))
    assert held == (longest if longest >= MIN_TOKENS else 0)
    assert [c.offset for c in caches] == ([held] if held else [])
    assert cache.fetch("other", tokens(*prompt)) == ([], 0)


def test_what_was_used_last_stays_within_the_bytes() -> None:
    one = kv(32)[0].nbytes
    cache = PrefixCache(3 * one)
    for first in range(3):
        cache.store("n", [first] * 32, kv(32))
    assert cache.nbytes == 3 * one
    assert cache.fetch("n", tokens(*[0] * 40))[1] == 32
    cache.store("n", [3] * 32, kv(32))
    assert [cache.longest("n", tokens(*[first] * 40)) for first in range(4)] == [32, 0, 32, 32]
    assert cache.nbytes == 3 * one
    cache.store("n", [4] * 2000, kv(2000))
    assert cache.longest("n", tokens(*[4] * 40)) == 0, "larger than everything is not kept"
    assert len(cache) == 3


def test_a_longer_entry_replaces_its_beginnings() -> None:
    cache = PrefixCache(1 << 30)
    cache.store("n", [1] * 20, kv(20))
    cache.store("n", [1] * 50, kv(50))
    cache.store("n", [1] * 30, kv(30))
    assert len(cache) == 1
    assert cache.fetch("n", tokens(*[1] * 25))[1] == 24


def test_caches_that_cannot_be_trimmed_serve_only_all_of_what_they_hold() -> None:
    state = ArraysCache(1)
    state[0] = mx.zeros((1, 4))
    window = RotatingKVCache(max_size=8)
    window.update_and_fetch(mx.zeros((1, 1, 24, 2)), mx.zeros((1, 1, 24, 2)))
    for caches in ([state], [*kv(24), window]):
        cache = PrefixCache(1 << 30)
        cache.store("n", list(range(24)), caches)
        assert cache.fetch("n", tokens(*range(20), 99, 98, 97, 96, 95))[1] == 0
        assert cache.fetch("n", tokens(*range(24)))[1] == 0, "the last token is still to be processed"
        assert cache.fetch("n", tokens(*range(25)))[1] == 24
        cache.store("n", list(range(30)), caches)
        assert len(cache) == 2, "the shorter one still serves what the longer one cannot"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: write_mlx_adapter(root / name, tiny_model(), rank=4, scale=15.0, seed=i)
        for i, name in enumerate(("a", "b"))
    }


@pytest.fixture
def engine(folders: dict[str, Path]) -> Iterator[Engine]:
    engine = Engine(tiny_base(), max_batch=4, prefill_chunk=16, prefix_cache_bytes=10_000_000)
    engine.start()
    for digest, folder in folders.items():
        engine.load_adapter(digest, folder)
    yield engine
    engine.close()


def test_a_shared_system_prompt_hits_and_nothing_else_does(engine: Engine) -> None:
    def cached(name: str, **kwargs: object) -> int:
        run = Run(engine, request(name, (*SYSTEM, 50, 51, len(name)), max_tokens=3, **kwargs))
        finished = run.wait()
        assert finished.cached_tokens == run.cached
        return run.cached

    assert cached("first", adapter="a", namespace="t") == 0
    assert cached("again", adapter="a", namespace="t") == len(SYSTEM) + 2
    assert cached("blend of one", blend=(("a", 1.0),), namespace="t") >= len(SYSTEM)
    assert cached("other adapter", adapter="b", namespace="t") == 0
    assert cached("other scale", adapter="a", factor=0.5, namespace="t") == 0
    assert cached("other tenant", adapter="a", namespace="u") == 0
    assert cached("base", namespace="t") == 0
    assert cached("blend", blend=(("a", 0.5), ("b", 0.5)), namespace="t") == 0
    assert cached("blend again", blend=(("b", 0.5), ("a", 0.5)), namespace="t") >= len(SYSTEM)
    assert cached("scale zero is the base", adapter="a", factor=0.0, namespace="t") >= len(SYSTEM)
    status = engine.status()
    assert status.prefix_hits == 4
    assert 0 < status.prefix_cache_bytes <= 10_000_000


def test_a_conversation_goes_on_from_its_answer(engine: Engine) -> None:
    first = Run(engine, request("one", SYSTEM, adapter="a", max_tokens=6))
    first.wait()
    prompt = (*SYSTEM, *first.ids, 7, 8)
    second = Run(engine, request("two", prompt, adapter="a"))
    second.wait()
    assert second.cached >= len(SYSTEM) + len(first.ids) - 1
    fresh = Run(engine, request("three", prompt, adapter="a", namespace="nobody else's"))
    fresh.wait()
    assert fresh.cached == 0
    assert second.ids == fresh.ids


def test_requests_that_come_together_wait_for_what_they_share(engine: Engine) -> None:
    runs = [Run(engine, request(f"r{i}", (*SYSTEM * 3, 50 + i, 9), adapter="b", max_tokens=8)) for i in range(4)]
    for run in runs:
        run.wait()
    assert sorted(run.cached for run in runs)[1:] == [3 * len(SYSTEM)] * 3
    for i, run in enumerate(runs):
        alone = Run(engine, request(f"a{i}", (*SYSTEM * 3, 50 + i, 9), adapter="b", max_tokens=8, namespace=str(i)))
        alone.wait()
        assert alone.cached == 0
        assert run.ids == alone.ids


def test_prompts_of_one_token_hold_nothing_to_keep(engine: Engine) -> None:
    runs = [Run(engine, request(f"one{i}", (9,), adapter="a", max_tokens=3 + 30 * i)) for i in range(2)]
    for run in runs:
        run.wait()
    assert runs[1].ids[: len(runs[0].ids)] == runs[0].ids
    assert [run.cached for run in runs] == [0, 0]


def test_a_version_that_comes_back_is_served_by_its_own_entries_only(engine: Engine, folders: dict[str, Path]) -> None:
    prompt = (*SYSTEM, 5, 6)
    before = Run(engine, request("before", prompt, adapter="a"))
    before.wait()
    engine.unload_adapter("a")
    engine.load_adapter("a2", folders["b"])
    other = Run(engine, request("other", prompt, adapter="a2"))
    other.wait()
    assert other.cached == 0
    engine.load_adapter("a", folders["a"])
    after = Run(engine, request("after", prompt, adapter="a"))
    after.wait()
    assert after.cached == len(prompt) - 1
    assert after.ids == before.ids != other.ids


@pytest.mark.parametrize("kind", ["turboquant:4", "turboquant:3.5"])
def test_compressed_caches_are_kept_and_trimmed_like_others(kind: str) -> None:
    base = tiny_base()
    plan = plan_caches(base.model, parse_uniform(kind))
    assert row_cost(base.model, plan).per_token == pytest.approx(plan.bytes_per_token, rel=0.01)
    engine = Engine(base, max_batch=4, prefill_chunk=16, prefix_cache_bytes=10_000_000, new_cache=plan)
    engine.start()
    try:
        runs = {}
        for name in ("warm", "cold"):
            for i in range(3):
                space = "shared" if name == "warm" else str(i)
                one = request(f"{name}{i}", (*SYSTEM, 50 + i, 9), namespace=space, max_tokens=20)
                runs[name, i] = Run(engine, one)
        for run in runs.values():
            run.wait()
        assert sorted(runs["warm", i].cached for i in range(3)) == [0, len(SYSTEM), len(SYSTEM)]
        for i in range(3):
            assert runs["cold", i].cached == 0
            assert runs["warm", i].ids == runs["cold", i].ids
    finally:
        engine.close()
