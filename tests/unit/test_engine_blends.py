"""Blends and scales in a batch, against weights to which the deltas were added."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from optiq_core.engine.engine import Engine
from optiq_core.engine.types import EngineRequest, NotLoadedError, Sampling
from tests.net.dense import Deltas, Dense, weight_deltas
from tests.unit.engine_run import Run, request
from tests.unit.tiny import tiny_base, tiny_model, write_mlx_adapter

PROMPT = (5, 9, 12, 3, 40, 22)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    made = {}
    for i, (name, rank) in enumerate([("a", 3), ("b", 8), ("c", 16)]):
        targets = ("q_proj", "v_proj", "o_proj") if i % 2 else ("q_proj", "down_proj")
        made[name] = write_mlx_adapter(
            root / name, tiny_model(), rank=rank, scale=4.0, seed=i, dora=name == "c", targets=targets
        )
    return made


@pytest.fixture(scope="module")
def deltas(folders: dict[str, Path]) -> dict[str, Deltas]:
    return {name: weight_deltas(folder, tiny_model()) for name, folder in folders.items()}


@pytest.fixture
def engine(folders: dict[str, Path]) -> Iterator[Engine]:
    engine = Engine(tiny_base(), max_batch=8, prefill_chunk=16)
    engine.start()
    for digest, folder in folders.items():
        engine.load_adapter(digest, folder)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def dense() -> Dense:
    return Dense(tiny_model(), {0}, tolerance=1e-3)


def blended(name: str, *parts: tuple[str, float], **kwargs: object) -> EngineRequest:
    return request(name, PROMPT, blend=parts, **kwargs)


def test_blends_in_one_batch_equal_the_sum_of_their_deltas(
    engine: Engine, dense: Dense, deltas: dict[str, Deltas]
) -> None:
    wanted = [
        blended("ab", ("a", 0.7), ("b", 0.3)),
        blended("ba", ("b", 0.3), ("a", 0.7)),
        blended("abc", ("a", 1.0), ("b", -0.5), ("c", 0.8), max_tokens=20),
        blended("scaled", ("a", 0.7), ("b", 0.3), factor=2.0),
        blended("one", ("c", 0.6)),
        blended("twice", ("b", 0.2), ("b", 0.3)),
        blended("drawn", ("a", 0.5), ("c", 0.5), sampling=Sampling(temperature=1.2, seed=7)),
        request("base", PROMPT),
    ]
    runs = Run.together(engine, wanted)
    finished = [run.wait() for run in runs]
    for one, run in zip(wanted, runs, strict=True):
        parts = [(deltas[name], weight * one.factor) for name, weight in one.blend]
        difference = dense.difference(one, parts, run.ids, ended=True)
        assert difference is None or difference.explained, (one.request_id, difference)
    assert runs[0].ids == runs[1].ids
    assert len({tuple(run.ids) for run in runs}) >= 6, "the blends must differ for this to mean anything"
    assert max(f.max_adapters for f in finished) >= 6


def test_weights_and_scales_of_zero_equal_the_base_bit_for_bit(engine: Engine) -> None:
    base = Run(engine, request("base", PROMPT))
    base.wait()
    for name, one in {
        "weights": blended("weights", ("a", 0.0), ("b", 0.0)),
        "scale": blended("scale", ("a", 0.7), ("b", 0.3), factor=0.0),
        "cancelling": blended("cancelling", ("a", 0.5), ("a", -0.5)),
    }.items():
        run = Run(engine, one)
        assert run.wait().max_adapters == 1
        assert run.ids == base.ids, name
    one_of_two = Run(engine, blended("one", ("a", 1.0), ("b", 0.0)))
    alone = Run(engine, request("alone", PROMPT, adapter="a"))
    one_of_two.wait()
    alone.wait()
    assert one_of_two.ids == alone.ids


def test_a_blend_holds_its_parts_and_leaves_with_its_last_user(engine: Engine) -> None:
    long = Run(engine, blended("long", ("a", 0.5), ("b", 0.5), max_tokens=300))
    short = Run(engine, blended("short", ("a", 0.5), ("b", 0.5), max_tokens=3))
    short.wait()
    assert engine.status().resident_adapters == 4
    engine.cancel("long")
    long.wait()
    engine.unload_adapter("a")
    assert engine.status().resident_adapters == 2
    with pytest.raises(NotLoadedError):
        Run(engine, blended("late", ("a", 0.5), ("b", 0.5)))
    # Nothing of a refused request stays behind.
    engine.unload_adapter("b")
