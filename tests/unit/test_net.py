"""The correctness net, cast for some seconds; ``python -m tests.net --minutes 60`` casts it for an hour."""

from __future__ import annotations

from pathlib import Path

import pytest

from optiq_core.engine.types import Sampling
from tests.net.dense import Dense, weight_deltas
from tests.net.worlds import embedded_round, moe_round, tiny_round
from tests.unit.engine_run import request
from tests.unit.tiny import tiny_model, write_mlx_adapter


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_every_answer_under_load_is_that_of_dense_weights(tmp_path: Path, seed: int) -> None:
    report = tiny_round(tmp_path, seed, requests=60)
    print(f"seed {seed}: {report}")
    assert not report.differences
    assert report.requests == 60
    assert report.explained <= 3
    assert min(report.blends, report.cancelled, report.mounts, report.unmounts) > 0
    assert report.most_adapters > 1


def test_every_answer_of_a_mixture_of_experts_is_that_of_dense_weights(tmp_path: Path) -> None:
    report = moe_round(tmp_path, 3, requests=40)
    assert not report.differences
    assert report.requests == 40
    assert report.most_adapters > 1


def test_the_net_catches_what_it_is_for(tmp_path: Path) -> None:
    folder = write_mlx_adapter(tmp_path / "a", tiny_model(), scale=12.0)
    dense = Dense(tiny_model(), {0}, 1e-3)
    deltas = weight_deltas(folder, tiny_model())
    one = request("one", tuple(range(1, 30)), max_tokens=20, sampling=Sampling(temperature=1.0, seed=3))
    bare = dense.answer(one)
    assert dense.difference(one, [], bare, ended=True) is None
    wrong = dense.difference(one, [(deltas, 1.0)], bare, ended=True)
    assert wrong is not None and not wrong.explained
    cut = dense.difference(one, [], bare[:-2], ended=True)
    assert cut is not None and not cut.explained
    assert dense.difference(one, [], bare[:-2], ended=False) is None


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_answer_of_many_seeds(tmp_path: Path) -> None:
    for seed in range(100, 120):
        report = (tiny_round if seed % 4 else moe_round)(tmp_path / str(seed), seed)
        assert not report.differences, seed
    report = embedded_round(tmp_path / "embedded", 120)
    assert not report.differences
