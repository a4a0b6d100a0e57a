from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from optiq_core.adapters.lora_config import read_lora_config
from optiq_core.base import load_base
from optiq_core.errors import TrainingError
from optiq_core.train import adapted, trainer
from optiq_core.train.card import base_name
from optiq_core.train.cpu import cross_entropy_for, training_forms
from optiq_core.train.events import CheckpointSaved, Progress, Started, Warned
from optiq_core.train.layers import recomputed_blocks
from optiq_core.train.step import make_step
from optiq_core.train.trainer import Signal
from tests.unit.train_lab import Lab, stop_after
from tests.unit.train_tiny import EIGHT_BITS, write_tiny_data


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_a_run_learns_reports_and_leaves_the_base_as_it_was(lab: Lab) -> None:
    before = {name: np.array(value) for name, value in tree_flatten(load_base(lab.base_path).model.parameters())}
    result = lab.run("adapter", iters=30, batch_size=4)
    assert (result.outcome, result.step) == ("succeeded", 30)
    started = lab.of(Started)[0]
    # q and v of two blocks: two at 4 bits, two at 8.
    assert (started.step, started.ranks) == (0, {"4": 2, "8": 2})
    reports: list[Progress] = lab.of(Progress)
    assert [report.step for report in reports] == list(range(2, 31, 2))
    assert reports[-1].train_loss < reports[0].train_loss * 0.8
    assert reports[0].valid_loss is None
    assert reports[-1].valid_loss == result.valid_loss is not None
    assert reports[-1].tokens_per_second > 0
    assert reports[-1].trained_tokens > 30
    assert reports[-1].seconds_left == 0
    assert [event.step for event in lab.of(CheckpointSaved)] == list(range(3, 30, 3))
    after = dict(tree_flatten(lab.base.model.parameters()))
    for name, value in before.items():
        path, leaf = name.rsplit(".", 1)
        current = after[name] if name in after else after[f"{path}.linear.{leaf}"]
        assert np.array_equal(value, np.array(current)), name
    card = read_lora_config(lab.root / "adapter")
    assert {path for path, rank in card.ranks.items() if rank == 8} == set(EIGHT_BITS)
    assert card.training is not None
    assert (card.training.steps, card.training.examples) == (30, 10)


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_resumed_run_gives_the_weights_of_an_uninterrupted_one(lab: Lab, stop: int) -> None:
    lab.run("whole", dropout=0.1)
    stopped = lab.run("parts", dropout=0.1, control=stop_after(stop))
    assert (stopped.outcome, stopped.step) == ("stopped", stop)
    assert not (lab.root / "parts").exists()
    assert lab.run("parts", dropout=0.1).outcome == "succeeded"
    assert lab.of(Started)[0].step == stop
    whole, parts = lab.weights("whole"), lab.weights("parts")
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert np.array_equal(value, parts[name]), name
    same = [msgspec.structs.replace(read_lora_config(lab.root / name)) for name in ("whole", "parts")]
    assert same[0].training is not None
    assert same[1].training is not None
    assert same[0].training.trained_tokens == same[1].training.trained_tokens


def test_a_kill_between_checkpoints_repeats_only_the_steps_since(lab: Lab) -> None:
    class KilledError(Exception):
        pass

    calls = iter(range(100))

    def kill() -> Signal:
        if next(calls) >= 5:
            raise KilledError
        return "go"

    with pytest.raises(KilledError):
        lab.run("adapter", control=kill)
    lab.run("adapter")
    assert lab.of(Started)[0].step == 3
    lab.run("whole")
    assert all(np.array_equal(value, lab.weights("adapter")[name]) for name, value in lab.weights("whole").items())


def test_cancel_writes_no_adapter(lab: Lab) -> None:
    assert lab.run("adapter", control=lambda: "cancel").outcome == "cancelled"
    assert not (lab.root / "adapter").exists()


def test_a_checkpoint_of_another_run_is_refused(lab: Lab) -> None:
    lab.run("one", control=stop_after(2))
    with pytest.raises(TrainingError, match="another configuration, data or base"):
        lab.run("two", checkpoint="one.checkpoint", learning_rate=5e-4)
    write_tiny_data(lab.data_path, seed=1)
    with pytest.raises(TrainingError, match="another configuration, data or base"):
        lab.run("two", checkpoint="one.checkpoint")


def test_more_iterations_may_be_added_to_a_stopped_run(lab: Lab) -> None:
    lab.run("adapter", control=stop_after(4))
    assert lab.run("adapter", iters=9, steps_per_report=1).step == 9


def test_a_damaged_checkpoint_is_named(lab: Lab) -> None:
    lab.run("adapter", control=stop_after(2))
    state = lab.root / "adapter.checkpoint" / "step-00000002" / "state.json"
    state.write_text("{")
    with pytest.raises(TrainingError, match=r"step-00000002: damaged checkpoint .* delete it"):
        lab.run("adapter")


def test_a_data_set_smaller_than_the_batch_is_trained_on(lab: Lab) -> None:
    write_tiny_data(lab.data_path, train=3, valid=1)
    assert lab.run("adapter", batch_size=16, iters=3).valid_loss is not None


def test_recomputing_activations_changes_nothing_but_memory(lab: Lab) -> None:
    kind = type(load_base(lab.base_path).model.layers[0])
    original = kind.__call__
    lab.run("plain", iters=3)
    lab.run("recomputed", iters=3, grad_checkpoint=True)
    assert kind.__call__ is original
    for name, value in lab.weights("plain").items():
        assert np.allclose(value, lab.weights("recomputed")[name], atol=1e-6), name
    with recomputed_blocks(lab.base.model, True):
        assert kind.__call__ is not original


def test_the_compiled_step_takes_the_same_steps(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.run("eager", dropout=0.1)
    monkeypatch.setattr(trainer, "make_step", lambda *args, compiled, **rest: make_step(*args, compiled=True, **rest))
    # As on a GPU: the CPU's forms have no place in a compiled step.
    monkeypatch.setattr(trainer, "training_forms", partial(training_forms, on_cpu=False))
    monkeypatch.setattr(adapted, "cross_entropy_for", partial(cross_entropy_for, on_cpu=False))
    lab.run("compiled", dropout=0.1)
    for name, value in lab.weights("eager").items():
        assert np.allclose(value, lab.weights("compiled")[name], atol=1e-5), name


def test_steps_that_are_not_finite_are_skipped_counted_and_end_the_run_when_they_go_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad: set[int] = {1, 2}
    calls = iter(range(1000))
    exact = adapted.loss_for

    def poisoned(model: nn.Module, chunk: int, cross_entropy: Any) -> Any:
        loss = exact(model, chunk, cross_entropy)

        def value(current: nn.Module, inputs: Any) -> Any:
            result, count = loss(current, inputs)
            return (result * mx.array(float("nan")) if next(calls) in bad else result), count

        return value

    monkeypatch.setattr(adapted, "loss_for", poisoned)
    lab.run("adapter", iters=6, steps_per_report=1, steps_per_eval=100)
    warnings: list[Warned] = lab.of(Warned)
    assert [warning.message.split(":")[0] for warning in warnings] == ["step 2", "step 3"]
    assert all("(train.jsonl line " in warning.message for warning in warnings)
    card = read_lora_config(lab.root / "adapter").training
    assert card is not None
    assert card.skipped_steps == 2
    assert all(np.isfinite(value).all() for value in lab.weights("adapter").values())
    assert all(np.isfinite(report.train_loss) for report in lab.of(Progress))
    bad |= set(range(1000))
    with pytest.raises(
        TrainingError, match=r"10 steps in a row, up to step 10 \(train\.jsonl line \d+.*\); lower learn"
    ):
        lab.run("worse", iters=100)


def test_targets_that_match_nothing_are_named_with_what_there_is(lab: Lab) -> None:
    with pytest.raises(TrainingError, match=r"'qproj' is in none of the adapted blocks; they have .*q_proj") as caught:
        lab.run("adapter", target_modules=("qproj",))
    assert caught.value.field == "target_modules"


def test_num_layers_counts_blocks_from_the_last(lab: Lab) -> None:
    lab.run("last", iters=1, num_layers=1, target_modules=("self_attn.o_proj", "down_proj"))
    assert set(read_lora_config(lab.root / "last").ranks) == {
        "model.layers.1.self_attn.o_proj",
        "model.layers.1.mlp.down_proj",
    }


def test_base_names() -> None:
    assert base_name(Path("/x/hub/models--org--some-model/snapshots/abc")) == "org/some-model"
    assert base_name(Path("/x/smollm2")) == "smollm2"
