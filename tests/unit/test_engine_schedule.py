"""Prompts in chunks beside rows that decode, admission by memory, and cancellation at every stage."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import mlx.nn as nn
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.models.cache import RotatingKVCache, make_prompt_cache

from optiq_core.engine.engine import Engine
from optiq_core.engine.memory import chunk_limit, row_cost
from optiq_core.engine.pace import Pace
from optiq_core.engine.types import Finished, Queued, Reason, Started, Tokens, TooLargeError
from tests.net.dense import Dense
from tests.unit.engine_run import Run, request
from tests.unit.tiny import tiny_base, tiny_model

LONG = tuple(1 + i * 7 % 60 for i in range(400))


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(tiny_base(), max_batch=4, max_queue=4, prefill_chunk=16)
    engine.start()
    yield engine
    engine.close()


def test_a_long_prompt_leaves_a_decode_step_after_every_chunk(engine: Engine) -> None:
    order: list[tuple[str, Any]] = []
    streaming = Run(engine, request("stream", (5, 6, 7), max_tokens=120))
    while not isinstance(streaming.next(), Tokens):
        pass
    engine.submit(request("long", LONG, max_tokens=1), lambda event: order.append(("long", event))).result()
    began = len(streaming.ids)
    streaming.wait()
    assert isinstance(order[0][1], Started)
    assert isinstance(order[-1][1], Finished)
    assert order[-1][1].steps == 1
    # 399 tokens in chunks of 16 take 25 steps, in each of which the stream went on.
    assert len(streaming.ids) - began >= 25


def test_short_prompts_pass_a_long_one(engine: Engine) -> None:
    ends = itertools.count()
    ended: dict[str, int] = {}

    def sink(name: str) -> Any:
        return lambda event: ended.setdefault(name, next(ends)) if isinstance(event, Tokens) else None

    engine.submit(request("long", LONG, max_tokens=2), sink("long")).result()
    second = Run(engine, request("long too", LONG[::-1], max_tokens=2))
    for name in ("short", "shorter"):
        engine.submit(request(name, (3, 4, 5), max_tokens=2), sink(name)).result()
    second.wait()
    assert sorted(ended, key=lambda name: ended[name])[-1] == "long"
    assert len(ended) == 3


def test_an_urgent_prompt_passes_those_that_began_and_they_still_go_on(engine: Engine) -> None:
    order: list[str] = []

    def sink(name: str) -> Any:
        return lambda event: order.append(name) if isinstance(event, Tokens | Finished) else None

    streaming = Run(engine, request("stream", (5, 6, 7), max_tokens=200))
    while not isinstance(streaming.next(), Tokens):
        pass
    engine.submit(request("long", LONG, max_tokens=1), sink("long")).result()
    last = Run(engine, request("urgent", LONG[::-1], max_tokens=1, urgent=True))
    engine.submit(request("short", (3, 4, 5), max_tokens=1), sink("short")).result()
    last.wait()
    assert "long" not in order, "it began first, and ends last"
    assert "short" in order, "but others have their turn too"
    streaming.wait()


def test_chunks_and_joins_change_nothing(engine: Engine) -> None:
    dense = Dense(tiny_model(), {0}, tolerance=1e-3)
    wanted = [
        request("long", LONG, max_tokens=30),
        request("single", (9,), max_tokens=30),
        request("short", LONG[:5], max_tokens=60),
        request("middle", LONG[3:60], max_tokens=9),
    ]
    runs = []
    for one in wanted:
        runs.append(Run(engine, one))
        while not isinstance(runs[0].seen[-1] if runs[0].seen else None, Started):
            runs[0].next()
    for one, run in zip(wanted, runs, strict=True):
        run.wait()
        difference = dense.difference(one, [], run.ids, ended=True)
        assert difference is None or difference.explained, (one.request_id, difference)


@pytest.mark.parametrize("window", [24, 64])
def test_a_window_of_tokens_gives_what_it_gives_alone(window: int) -> None:
    def caches(model: nn.Module) -> list[Any]:
        return [RotatingKVCache(max_size=window) for _ in model.layers]

    engine = Engine(tiny_base(), max_batch=4, prefill_chunk=16, prefix_cache_bytes=10_000_000, new_cache=caches)
    engine.start()
    try:
        prompts = [LONG[:50], (*LONG[:50], 3, 4), LONG[:7], LONG[1:90], LONG[:20]]
        alone = []
        for i, prompt in enumerate(prompts):
            run = Run(engine, request(f"a{i}", prompt, max_tokens=40, namespace=f"alone {i}"))
            run.wait()
            alone.append(run.ids)
        together = [Run(engine, request(f"t{i}", p, max_tokens=40, namespace="t")) for i, p in enumerate(prompts)]
        for run in together:
            run.wait()
        again = Run(engine, request("again", (*LONG[:50], 3, 4), max_tokens=40, namespace="t"))
        again.wait()
        assert [run.ids for run in together] == alone
        assert again.cached > 0
        assert again.ids == alone[1]
    finally:
        engine.close()


def test_rows_wait_until_their_caches_fit() -> None:
    cost = row_cost(tiny_model(), make_prompt_cache)
    assert cost.per_token == 2 * 2 * 2 * 16 * 4, "layers, keys and values, heads, dims, bytes"
    assert cost.fixed == 0
    engine = Engine(tiny_base(), max_batch=4, kv_cache_bytes=int(cost.rows([200, 200])))
    engine.start()
    try:
        runs = [Run(engine, request(f"r{i}", (1 + i, 2), max_tokens=190)) for i in range(3)]
        while not any(isinstance(event, Queued) for event in runs[2].seen):
            runs[2].next()
        assert runs[2].seen[0] == Queued(1)
        finished = [run.wait() for run in runs]
        assert max(f.max_rows for f in finished) == 2
        with pytest.raises(TooLargeError, match="MB of KV cache"):
            Run(engine, request("huge", LONG, max_tokens=2000))
        # A row is padded to the longest: a long one and three short ones do not fit beside each other.
        runs = [Run(engine, request("long", LONG[:300], max_tokens=90))]
        runs += [Run(engine, request(f"s{i}", (1 + i, 2), max_tokens=5)) for i in range(3)]
        assert max(run.wait().max_rows for run in runs) <= 3
    finally:
        engine.close()


def test_cancelling_at_any_stage_frees_the_row_at_the_next_step(engine: Engine) -> None:
    decoding = Run(engine, request("decoding", (5, 6), max_tokens=500))
    while not isinstance(decoding.next(), Tokens):
        pass
    stages = {
        "prefilling": Run(engine, request("prefilling", LONG, max_tokens=5)),
        "not begun": Run(engine, request("not begun", LONG[1:], max_tokens=5)),
        "short": Run(engine, request("short", (1, 2, 3), max_tokens=500)),
        "queued": Run(engine, request("queued", (1, 2, 3), max_tokens=5)),
    }
    while not isinstance(stages["prefilling"].next(), Started):
        pass
    for name in stages:
        engine.cancel(name)
    for name, run in stages.items():
        assert run.wait().reason is Reason.CANCELLED, name
    assert engine.status().active_rows == 1
    after = Run(engine, request("after", (1, 2, 3), max_tokens=5))
    assert after.wait().reason is not Reason.CANCELLED
    engine.cancel("decoding")
    assert decoding.wait().reason is Reason.CANCELLED
    assert engine.status().active_rows == 0


def test_the_pace_follows_the_measured_cost() -> None:
    pace = Pace(512)
    assert pace.chunk(decoding=False) == 512
    assert pace.chunk(decoding=True) <= 64, "nothing is known yet"

    def cost(tokens: int, context: int) -> float:
        return 0.05 + tokens * (2e-3 + context * 1e-6)

    for i in range(60):
        pace.observe(0.1, prompt_tokens=0, decoding=True)
        tokens, context = 20 + 13 * (i % 7), 700 * (i % 5)
        pace.observe(0.1 + cost(tokens, context), prompt_tokens=tokens, context=context, decoding=True)
    for context in (0, 1000, 4000):
        taken = cost(pace.chunk(context, decoding=True), context)
        assert 0.27 < taken < 0.33, f"three decode steps behind {context} tokens"
        assert 0.54 < cost(pace.chunk(context, urgent=True, decoding=True), context) < 0.66, "six"
    assert 0.27 < cost(pace.chunk(decoding=False), 0) < 0.33, "0.3 s: newcomers do not wait longer"
    assert pace.chunk(1_000_000, decoding=True) == 16, "a prompt moves on, whatever it costs"
    assert Pace(4).chunk(decoding=True) == 4


@given(
    st.lists(st.tuples(st.floats(1e-4, 10), st.integers(1, 4096), st.integers(0, 100_000)), min_size=1, max_size=30),
    st.integers(0, 200_000),
)
def test_whatever_was_measured_a_chunk_has_a_size(measured: list[tuple[float, int, int]], context: int) -> None:
    pace = Pace(512)
    for seconds, tokens, before in measured:
        pace.observe(seconds / 2, prompt_tokens=0, decoding=True)
        pace.observe(seconds, prompt_tokens=tokens, context=before, decoding=True)
    assert 16 <= pace.chunk(context, decoding=True) <= pace.chunk(context, urgent=True, decoding=True) <= 512
    assert pace.chunk(context + 1000, decoding=True) <= pace.chunk(context, decoding=True)


def test_the_chunk_shrinks_with_the_memory() -> None:
    assert chunk_limit(512, heads=8, context=4096, budget=1 << 40) == 512
    assert chunk_limit(512, heads=8, context=4096, budget=1 << 24) == 32
    assert chunk_limit(512, heads=0, context=0, budget=0) == 512
