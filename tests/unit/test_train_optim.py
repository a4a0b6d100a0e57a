from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from optiq_core.errors import TrainingError
from optiq_core.train import trainer
from optiq_core.train.config import TrainConfig
from optiq_core.train.events import Progress, Warned
from optiq_core.train.optim import build_optimizer
from optiq_core.train.schemes import OPTIMIZERS
from tests.unit.train_lab import Lab, stop_after


@pytest.fixture
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


def rates(**fields: object) -> list[float]:
    """Learning rate of every step, as the optimizer takes it."""
    config = TrainConfig(data_path="d", learning_rate=0.1, **fields)  # type: ignore[arg-type]
    optimizer = build_optimizer(config)
    weights = {"w": mx.array([1.0])}
    found = []
    for _ in range(config.iters):
        weights = optimizer.apply_gradients({"w": mx.array([0.5])}, weights)
        found.append(float(optimizer.learning_rate.item()))
    return found


@pytest.mark.parametrize(("schedule", "middle"), [("linear", 0.06), ("cosine", 0.06), ("exponential", 0.044721)])
def test_schedules_go_from_the_first_rate_to_the_last(schedule: str, middle: float) -> None:
    found = rates(lr_schedule=schedule, lr_end=0.02, iters=11)
    assert found[0] == pytest.approx(0.1)
    assert found[5] == pytest.approx(middle, abs=1e-4)
    assert found[-1] == pytest.approx(0.02)
    assert found == sorted(found, reverse=True)


def test_warmup_rises_from_zero_and_the_schedule_still_ends_at_the_last_step() -> None:
    assert rates(warmup_steps=4, iters=8) == pytest.approx([0, 0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.1])
    found = rates(warmup_steps=4, iters=11, lr_schedule="linear")
    assert found[4:6] == pytest.approx([0.1, 0.1])
    assert found[-1] == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss_at_its_own_rate(lab: Lab, optimizer: str) -> None:
    rate = {"sgd": 5e-2, "muon": 1e-2}.get(optimizer, 2e-3)
    lab.run("adapter", optimizer=optimizer, learning_rate=rate, iters=16, steps_per_report=4)
    reports: list[Progress] = lab.of(Progress)
    assert reports[-1].train_loss < reports[0].train_loss - 0.05


def test_a_clipped_gradient_moves_the_weights_by_at_most_its_norm(lab: Lab) -> None:
    lab.run("free", optimizer="sgd", learning_rate=1.0, iters=1)
    lab.run("clipped", optimizer="sgd", learning_rate=1.0, iters=1, clip_norm=1e-3)

    def moved(name: str) -> float:
        # lora_a has no gradient at the first step, since lora_b starts at zero.
        scale = 20.0
        squares = [np.square(v / scale).sum() for k, v in lab.weights(name).items() if k.endswith("lora_b")]
        return float(np.sqrt(sum(squares)))

    assert moved("free") > 2e-3
    assert moved("clipped") == pytest.approx(1e-3, rel=1e-3)


def test_a_run_stops_early_and_keeps_its_best_weights(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.1, 9.0, 9.0])
    monkeypatch.setattr(trainer._Run, "_validate", lambda run: next(losses))
    result = lab.run("adapter", iters=50, steps_per_eval=2, patience=2)
    assert (result.outcome, result.step, result.valid_loss) == ("succeeded", 8, 2.0)
    assert "stopped early, the adapter is that of step 4" in lab.of(Warned)[-1].message
    lab.run("four", iters=4, steps_per_eval=100)
    assert all(np.array_equal(value, lab.weights("adapter")[name]) for name, value in lab.weights("four").items())


def test_the_best_weights_are_written_where_the_last_ones_are_worse(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([1.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr(trainer._Run, "_validate", lambda run: next(losses))
    assert lab.run("adapter", iters=6, steps_per_eval=2, keep_best=True).valid_loss == 1.0
    lab.run("two", iters=2, steps_per_eval=100)
    assert all(np.array_equal(value, lab.weights("adapter")[name]) for name, value in lab.weights("two").items())


def test_early_stopping_without_validation_data_is_refused_by_name(lab: Lab) -> None:
    (lab.data_path / "valid.jsonl").unlink()
    with pytest.raises(TrainingError, match=r"patience: needs validation examples, in valid\.jsonl") as caught:
        lab.run("adapter", patience=2)
    assert caught.value.field == "patience"


@pytest.mark.parametrize("stop", [pytest.param(3, marks=pytest.mark.slow), 7])
def test_schedule_moments_and_patience_go_on_where_a_run_was_stopped(lab: Lab, stop: int) -> None:
    fields = {
        "optimizer": "adamw",
        "weight_decay": 0.1,
        "lr_schedule": "cosine",
        "warmup_steps": 2,
        "clip_norm": 0.5,
        "steps_per_eval": 2,
        "patience": 3,
        "dropout": 0.2,
        "iters": 12,
    }
    whole = lab.run("whole", **fields)
    assert lab.run("parts", control=stop_after(stop), **fields).outcome == "stopped"
    parts = lab.run("parts", **fields)
    assert parts == whole
    for name, value in lab.weights("whole").items():
        assert np.array_equal(value, lab.weights("parts")[name]), name


def test_a_schedule_ties_a_checkpoint_to_its_last_step(lab: Lab) -> None:
    lab.run("adapter", lr_schedule="linear", control=stop_after(2))
    with pytest.raises(TrainingError, match="another configuration"):
        lab.run("adapter", lr_schedule="linear", iters=20)


def test_a_full_disk_costs_a_checkpoint_not_the_run(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    from optiq_core.train import checkpoint

    def full(target: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "staged_folder", full)
    assert lab.run("adapter").outcome == "succeeded"
    warned = [w.message for w in lab.of(Warned)]
    assert [text.split(":")[0] for text in warned] == ["step 3", "step 6"]
    assert all("no checkpoint" in text and "No space left on device" in text for text in warned)
    monkeypatch.setattr(trainer, "write_adapter", full_write)
    with pytest.raises(TrainingError, match=r"the adapter cannot be written \(No space left on device\); the last"):
        lab.run("other")


def full_write(folder: object, tensors: object, config: object, **options: object) -> None:
    raise OSError(28, "No space left on device")


def test_trained_weights_are_finite_with_every_optimizer_state_saved(lab: Lab) -> None:
    lab.run("adapter", optimizer="adafactor", control=stop_after(4))
    assert lab.run("adapter", optimizer="adafactor").outcome == "succeeded"
    assert all(np.isfinite(value).all() for _, value in tree_flatten(lab.weights("adapter")))
