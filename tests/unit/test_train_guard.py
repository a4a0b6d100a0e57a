"""The guard: fewer rows, or a stop with a checkpoint, before memory runs out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from optiq_core.planner.calibration import MOST_MARGIN, Observation, learn
from optiq_core.train.config import TrainConfig
from optiq_core.train.data import load_data
from optiq_core.train.events import ShortOfMemory, Shrunk, StepPeak
from optiq_core.train.guard import MemoryGuard, ShortOfMemoryError
from optiq_core.train.trainer import train
from optiq_daemon.jobs.records import NOTHING_LESS
from optiq_daemon.trainer_process import no_memory
from tests.unit.train_lab import Lab


def after_a_step(guard: MemoryGuard, nbytes: int, tokens: int) -> MemoryGuard:
    guard.begin()
    block: Any = mx.zeros(nbytes // 4)
    mx.eval(block)
    del block
    guard.end(tokens)
    return guard


def test_rows_are_halved_until_the_step_fits() -> None:
    mx.clear_cache()
    guard = after_a_step(MemoryGuard(mx.get_active_memory() + 10_000_000), 8_000_000, 800)
    assert guard.rows(8, lambda rows: rows * 100) == 8, "what it took before fits again"
    assert guard.rows(8, lambda rows: rows * 200) == 4
    with pytest.raises(ShortOfMemoryError, match="the next step needs"):
        guard.rows(2, lambda rows: rows * 2000)


def test_what_the_system_has_left_counts_too() -> None:
    mx.clear_cache()
    left = [50_000_000]
    guard = after_a_step(MemoryGuard(free=lambda: left[0]), 8_000_000, 800)
    assert guard.rows(8, lambda rows: rows * 100) == 8
    mx.clear_cache()
    left[0] = 5_000_000
    assert guard.rows(8, lambda rows: rows * 100) == 4


def test_before_the_first_step_the_plan_is_believed() -> None:
    assert MemoryGuard(1).rows(8, lambda rows: rows * 100) == 8


class Limited(MemoryGuard):
    """Lets only so many padded tokens through after the first step."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def rows(self, rows: int, tokens: Any) -> int:
        if not self._per_token:
            return rows
        while tokens(rows) > self.most:
            if rows == 1:
                raise ShortOfMemoryError(2, 1)
            rows //= 2
        return rows


def run(lab: Lab, name: str, guard: MemoryGuard | None, **fields: Any) -> Any:
    from optiq_core.base import load_base

    lab.events, base, config = [], load_base(lab.base_path), lab.config(**fields)
    return train(
        base,
        config,
        data=load_data(config.data_path, base.tokenizer, config),
        out_dir=lab.root / name,
        checkpoint_dir=lab.root / f"{name}.checkpoint",
        on_event=lab.events.append,
        guard=guard,
    )


def test_a_run_that_shrinks_on_the_way_ends_with_the_same_adapter(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    run(lab, "whole", None, batch_size=8)
    peaks = lab.of(StepPeak)
    assert peaks and peaks[-1].peak_bytes > 0 and peaks[-1].rows == 8
    run(lab, "shrunk", Limited(peaks[-1].rows * (peaks[-1].width + 1) // 2), batch_size=8)
    assert lab.of(Shrunk) and lab.of(Shrunk)[-1].rows < 8
    for name, value in lab.weights("whole").items():
        assert np.allclose(value, lab.weights("shrunk")[name], atol=2e-4), name


def test_a_run_that_cannot_shrink_stops_with_a_checkpoint(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    result = run(lab, "short", Limited(0), batch_size=2)
    assert (result.outcome, result.step) == ("stopped", 1)
    assert "needs" in lab.of(ShortOfMemory)[0].reason
    assert run(lab, "short", None, batch_size=2).outcome == "succeeded"


def test_smaller_settings_come_in_order_and_end() -> None:
    config = TrainConfig(data_path="/d", batch_size=5)
    found, reduced = [], NOTHING_LESS.smaller(config)
    while reduced is not None:
        found.append(reduced.words(config))
        reduced = reduced.smaller(config)
    assert found == [
        "micro_batch_size 2",
        "micro_batch_size 1",
        "micro_batch_size 1, loss_chunk 256",
        "micro_batch_size 1, loss_chunk 256, grad_checkpoint true",
    ]


@pytest.mark.parametrize(
    "message",
    [
        "[malloc] Unable to allocate 123 bytes.",
        "[metal::malloc] Resource limit (499000) exceeded.",
        "[METAL] Command buffer execution failed: Insufficient Memory (kIOGPUCommandBufferCallbackErrorOutOfMemory)",
        "cudaMalloc failed: out of memory",
    ],
)
def test_errors_of_memory_are_known_by_their_words(message: str) -> None:
    assert no_memory(RuntimeError(message))
    assert not no_memory(RuntimeError("shapes (3, 4) and (5, 6) do not match"))


def test_a_death_widens_the_margin_and_leaves_the_factor() -> None:
    before = learn([Observation(1000, 950)] * 6)
    after = learn([*[Observation(1000, 950)] * 6, Observation(1000, 1200, died=True)])
    assert before.factor == after.factor == pytest.approx(0.95)
    assert after.bound(1000) > 1200 > before.bound(1000)
    assert learn([Observation(1000, 10_000, died=True)]).margin == MOST_MARGIN
    aged = learn([Observation(1000, 1200, died=True), *[Observation(1000, 950)] * 60])
    assert aged.margin < 0.03, "what was wrong long ago has been learned since"
