from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models import gemma3_text, gpt2, mamba

from optiq_core.errors import TrainingError
from optiq_core.planner.shape import largest_packed_shape
from optiq_core.train.batches import BatchOrder, collate, collate_packed, pack
from optiq_core.train.data import Example
from optiq_core.train.events import Progress
from optiq_core.train.layers import apply_lora, find_targets, recomputed_blocks
from optiq_core.train.loss import full_loss, loss_for, to_inputs
from optiq_core.train.packed import check_packable
from tests.unit.tiny import tiny_model
from tests.unit.train_lab import Lab, stop_after


def gemma() -> nn.Module:
    """Sliding windows of 4 tokens in five of six blocks."""
    mx.random.seed(0)
    return gemma3_text.Model(
        gemma3_text.ModelArgs(
            model_type="gemma3_text",
            hidden_size=64,
            num_hidden_layers=6,
            intermediate_size=128,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            vocab_size=64,
            sliding_window=4,
            sliding_window_pattern=6,
        )
    )


def examples(seed: int, count: int) -> list[Example]:
    rng = np.random.default_rng(seed)
    made = []
    for line in range(count):
        length = int(rng.integers(3, 24))
        made.append(Example(tuple(rng.integers(1, 64, length).tolist()), int(rng.integers(1, length)), line))
    return made


@pytest.mark.parametrize("make", [tiny_model, gemma], ids=["llama", "gemma3-sliding-window"])
def test_packed_examples_have_the_loss_and_gradient_that_they_have_alone(make: Any) -> None:
    model = make()
    check_packable(model)
    split = loss_for(model)
    apply_lora(model, dict.fromkeys(find_targets(model, ("q_proj", "v_proj"), -1), 4), scale=2.0, dropout=0.0)
    rng = np.random.default_rng(0)
    for _, module in model.named_modules():
        if hasattr(module, "lora_b"):
            module.lora_b = mx.array(rng.normal(size=module.lora_b.shape).astype(np.float32) * 0.05)
    data = examples(1, 9)
    alone = to_inputs(collate(data))
    rows = [[data[i] for i in row] for row in pack([len(e.tokens) for e in data], 48)]
    assert max(len(row) for row in rows) > 2
    packed = to_inputs(collate_packed(rows))
    expected = nn.value_and_grad(model, full_loss)(model, alone)
    for loss in (full_loss, split, loss_for(model, chunk=8)):
        for recompute in (False, True):
            with recomputed_blocks(model, recompute):
                (value, count), grads = nn.value_and_grad(model, loss)(model, packed)
            assert count.item() == expected[0][1].item() == sum(e.trainable for e in data)
            assert np.isclose(value.item(), expected[0][0].item(), rtol=1e-5)
            for (name, ours), (_, theirs) in zip(tree_flatten(grads), tree_flatten(expected[1]), strict=True):
                assert np.allclose(ours, theirs, atol=1e-5), name


def test_a_wrong_mask_would_be_noticed() -> None:
    model = tiny_model()
    data = examples(1, 9)
    packed = to_inputs(collate_packed([data[:5], data[5:]]))
    right = loss_for(model)(model, packed)[0].item()
    packed["segments"] = mx.ones_like(packed["segments"])
    assert abs(right - loss_for(model)(model, packed)[0].item()) > 1e-3


def test_models_for_which_packing_is_another_function_are_refused() -> None:
    recurrent = mamba.Model(
        mamba.ModelArgs(
            model_type="mamba",
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            state_size=4,
            num_hidden_layers=2,
            conv_kernel=4,
            use_bias=False,
            use_conv_bias=True,
            time_step_rank=4,
        )
    )
    with pytest.raises(TrainingError, match=r"pack_length: this model has layers that carry a state .*ArraysCache"):
        check_packable(recurrent)
    absolute = gpt2.Model(
        gpt2.ModelArgs(
            model_type="gpt2",
            n_ctx=64,
            n_embd=32,
            n_head=2,
            n_layer=2,
            n_positions=64,
            layer_norm_epsilon=1e-5,
            vocab_size=64,
        )
    )
    # As large as trained ones are: those of a fresh model are too small to be seen.
    absolute.model.wpe.weight = absolute.model.wpe.weight * 20
    with pytest.raises(TrainingError, match="pack_length: this model's attention depends on absolute positions"):
        check_packable(absolute)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(8, 64))
def test_every_example_is_in_one_row_and_rows_are_not_longer_than_asked(lengths: list[int], capacity: int) -> None:
    rows = pack(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    for row in rows:
        assert len(row) == 1 or sum(lengths[i] for i in row) <= capacity
    # Of any two rows at most one is half empty, or they would have been one.
    assert sum(sum(lengths[i] for i in row) * 2 <= capacity for row in rows) <= 1


def test_packing_takes_few_shapes_and_the_planners_one_is_the_largest() -> None:
    data = examples(2, 300)
    order = BatchOrder(data, batch_size=4, seed=0, pack_length=64)
    batches = [order[i] for i in range(2 * order.batches_per_epoch)]
    assert sorted(line for b in batches[: order.batches_per_epoch] for line in b.lines) == list(range(300))
    filled = sum(b.real_tokens for b in batches) / sum(b.tokens[:, 1:].size for b in batches)
    assert filled > 0.9
    assert len({(b.tokens.shape, b.positions.shape) for b in batches}) <= 8
    bound = largest_packed_shape(data, 4, 64)
    for batch in batches:
        assert batch.tokens.shape[0] <= bound.rows
        assert batch.tokens.shape[1] - 1 <= bound.width
        assert len(batch.positions) <= bound.positions


def test_a_packed_run_learns_and_goes_on_bitwise(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    fields: dict[str, Any] = {"pack_length": 96, "batch_size": 2, "iters": 12, "dropout": 0.1}
    lab.run("whole", **fields)
    reports: list[Progress] = lab.of(Progress)
    assert reports[-1].train_loss < reports[0].train_loss
    lab.run("parts", control=stop_after(5), **fields)
    lab.run("parts", **fields)
    assert all(np.array_equal(value, lab.weights("parts")[name]) for name, value in lab.weights("whole").items())


def test_the_planner_traces_the_packed_step(tmp_path: Path) -> None:
    from optiq_core.planner.ceilings import ceiling_of
    from optiq_core.planner.planner import Planner

    lab = Lab(tmp_path)
    planner = Planner(lab.base_path, ceiling_of("cpu"))
    plain, packed = (planner.plan(lab.config(pack_length=p, max_seq_length=128)) for p in (0, 128))
    assert packed.width == plain.width
    # Each example of a row attends by itself: all that a packed batch has more are the examples' numbers.
    assert packed.peak_bytes == plain.peak_bytes + 4 * packed.rows * packed.width
