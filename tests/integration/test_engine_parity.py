"""Mixed batches on the real embedded model: eight adapters of different ranks in one batch equal each alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest

from optiq_core.adapters.bank import BASE, active
from optiq_core.base import LoadedBase, load_base, resolve_base
from optiq_core.engine.engine import Engine
from optiq_core.engine.types import EngineRequest
from tests.unit.engine_run import Run
from tests.unit.tiny import write_mlx_adapter

RANKS = [1, 2, 4, 8, 12, 16, 24, 64]
# Float32 sums in another order; logits of this model are of the order of 20.
TOLERANCE = 2e-3
PROMPTS = [
    "What is the capital of France?",
    "Hi",
    "Write one sentence about the sea and the wind that moves it, please.",
    "12 km in m",
    "Name three colours.",
    "Why is the sky blue? Answer in a few words, as for a child.",
    "Count to five.",
    "What is a poem?",
]


@pytest.fixture(scope="module")
def base() -> LoadedBase:
    return load_base(resolve_base("embedded"))


@pytest.fixture(scope="module")
def engine(base: LoadedBase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    root = tmp_path_factory.mktemp("adapters")
    folders: dict[str, Path] = {}
    for i, rank in enumerate(RANKS):
        targets = ("q_proj", "v_proj") if i % 2 else ("q_proj", "k_proj", "o_proj", "down_proj")
        folders[f"r{rank}"] = write_mlx_adapter(
            root / f"r{rank}", base.model, rank=rank, scale=0.4, seed=i, dora=i % 4 == 1, targets=targets
        )
    engine = Engine(base, max_batch=8)
    engine.start()
    for digest, folder in folders.items():
        engine.load_adapter(digest, folder)
    yield engine
    engine.close()


def prompt_ids(base: LoadedBase, text: str) -> tuple[int, ...]:
    return tuple(base.tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True))


def last_logits(engine: Engine, base: LoadedBase, digests: list[str], ids: list[int]) -> mx.array:
    """Logits of the next token, a row for each adapter ("" for the base), without a cache.

    On the engine's thread: the streams that its arrays wait for belong to it.
    """

    def forward() -> mx.array:
        handles = [engine.bank.handle(digest) if digest else BASE for digest in digests]
        token = active.set(engine.bank.rows(handles, [1.0] * len(handles)))
        try:
            logits = base.model(mx.array([ids] * len(digests)))[:, -1]
            mx.eval(logits)
            return logits
        finally:
            active.reset(token)

    return engine._call(forward).result()


def test_eight_adapters_decode_together_as_they_do_alone(engine: Engine, base: LoadedBase) -> None:
    requests = [
        EngineRequest(f"{digest}-{i}", prompt_ids(base, PROMPTS[i]), 12, adapter=digest)
        for i, digest in enumerate(f"r{rank}" for rank in RANKS)
    ]
    alone = []
    for request in requests:
        run = Run(engine, request)
        run.wait()
        alone.append(run.ids)
    together = Run.together(engine, requests)
    assert max(run.wait().max_adapters for run in together) >= 6
    for request, single, mixed in zip(requests, alone, (run.ids for run in together), strict=True):
        if mixed == single:
            continue
        at = next(i for i, pair in enumerate(zip(single, mixed, strict=False)) if pair[0] != pair[1])
        logits = last_logits(engine, base, [request.adapter], [*request.prompt, *single[:at]])[0]
        gap = abs(logits[single[at]] - logits[mixed[at]]).item()
        assert gap < TOLERANCE, f"{request.adapter}: token {at} differs with a logit gap of {gap}"


def test_logits_of_a_mixed_batch_equal_each_row_alone(engine: Engine, base: LoadedBase) -> None:
    ids = list(prompt_ids(base, PROMPTS[0]))
    keys = [f"r{rank}" for rank in RANKS]
    mixed = last_logits(engine, base, keys, ids)
    plain = last_logits(engine, base, [""], ids)[0]
    for row, key in zip(mixed, keys, strict=True):
        alone = last_logits(engine, base, [key], ids)[0]
        assert mx.abs(row - alone).max().item() < TOLERANCE, key
        assert mx.abs(row - plain).max().item() > 0.05, f"{key} does not change the base"
