"""A batch in parts has the gradient of the batch in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn, optimizers
from mlx.utils import tree_flatten

from optiq_core.train.batches import BatchOrder, collate
from optiq_core.train.data import Example
from optiq_core.train.layers import apply_lora
from optiq_core.train.loss import Inputs, loss_for, to_inputs
from optiq_core.train.step import InterruptedStepError, make_part, make_step
from tests.unit.tiny import tiny_model
from tests.unit.train_lab import Lab, stop_after

VOCAB = 96


def examples(count: int) -> list[Example]:
    """Of different lengths, and with prompts of different lengths."""
    rng = np.random.default_rng(7)
    lengths = sorted(rng.integers(6, 60, count).tolist())
    return [Example(tuple(rng.integers(3, VOCAB, n).tolist()), int(rng.integers(1, n // 2))) for n in lengths]


@pytest.fixture
def model() -> Any:
    made: Any = tiny_model(3, vocab=VOCAB)
    paths = [f"model.layers.{i}.self_attn.{name}" for i in range(2) for name in ("q_proj", "v_proj")]
    mx.random.seed(1)
    apply_lora(made, dict.fromkeys(paths, 4), scale=2.0, dropout=0.0)
    for path, value in tree_flatten(made.trainable_parameters()):
        if path.endswith("lora_b"):
            value[:] = mx.random.normal(value.shape) * 0.05
    made.train()
    return made


def summed(model: Any, rows: int, data: list[Example]) -> dict[str, Any]:
    parts = [to_inputs(collate(data[at : at + rows])) for at in range(0, len(data), rows)]
    part = make_part(model, loss_for(model))
    total = mx.array(sum(int(each["count"].item()) for each in parts))
    sums: Any = nn.utils.tree_map(mx.zeros_like, model.trainable_parameters())
    for inputs in parts:
        _, _, sums = part(inputs, total, sums)
    return dict(tree_flatten(sums))


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_the_gradient_of_the_parts_is_that_of_the_batch(model: Any, rows: int) -> None:
    data = examples(8)
    whole, parts = summed(model, 8, data), summed(model, rows, data)
    largest = max(float(mx.abs(value).max()) for value in whole.values())
    assert largest > 0
    for path, value in whole.items():
        assert float(mx.abs(value - parts[path]).max()) < 2e-6 * largest, path


def test_a_whole_run_in_parts_writes_the_same_adapter(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    whole = lab.run("whole", batch_size=6)
    parts = lab.run("parts", batch_size=6, micro_batch_size=2)
    assert parts.valid_loss == pytest.approx(whole.valid_loss, rel=1e-5)
    # Adam divides by the gradient's size, which makes rounding visible where that is next to nothing.
    for name, value in lab.weights("whole").items():
        assert np.allclose(value, lab.weights("parts")[name], atol=2e-4), name


def test_a_run_goes_on_from_its_checkpoint_with_less_memory(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run("whole", batch_size=4)
    stopped = lab.run("first", checkpoint="kept", control=stop_after(3), batch_size=4)
    assert stopped.outcome == "stopped"
    lab.run("rest", checkpoint="kept", batch_size=4, micro_batch_size=1, grad_checkpoint=True, loss_chunk=16)
    for name, value in lab.weights("whole").items():
        assert np.allclose(value, lab.weights("rest")[name], atol=2e-4), name


def test_parts_cover_the_batch_and_rows_of_like_length_share_one() -> None:
    data = examples(16)
    order = BatchOrder(data, batch_size=6, seed=3)
    for position in range(5):
        whole, parts = order[position], order.parts(position, 2)
        assert [line for part in parts for line in part.lines] == list(whole.lines)
        assert sum(part.loss_tokens for part in parts) == whole.loss_tokens
        assert parts[0].tokens.shape[1] <= whole.tokens.shape[1]


def test_a_step_left_between_its_parts_changes_nothing(model: Any) -> None:
    step = make_step(model, optimizers.Adam(learning_rate=0.1), loss_for(model), compiled=False)
    parts: list[Inputs] = [to_inputs(collate([example])) for example in examples(3)]
    before = {path: np.array(value) for path, value in tree_flatten(model.trainable_parameters())}
    answers = iter((True, True, False))
    with pytest.raises(InterruptedStepError):
        step(*parts, proceed=lambda: next(answers))
    for path, value in tree_flatten(model.trainable_parameters()):
        assert np.array_equal(before[path], np.array(value)), path
    assert step(*parts).applied
