"""The CPU's operations and the order of evaluation change nothing but time and memory."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn, optimizers
from mlx.utils import tree_flatten

from optiq_core.train import cpu_attention
from optiq_core.train.batches import collate, collate_packed, pack
from optiq_core.train.cpu import cross_entropy_for, takes_cpu_forms, training_forms
from optiq_core.train.cpu_ops import cross_entropy, rotate, swiglu
from optiq_core.train.layers import apply_lora, find_targets
from optiq_core.train.loss import full_loss, loss_for, to_inputs
from optiq_core.train.stages import recording, stage
from optiq_core.train.step import make_step
from tests.unit.test_train_packing import examples
from tests.unit.tiny import tiny_model


def close(function: Any, other: Any, *arrays: mx.array, atol: float = 1e-5) -> None:
    """Both have the same value and the same gradients at all arrays."""
    at = tuple(range(len(arrays)))
    (value, grads), (expected, theirs) = (mx.value_and_grad(f, argnums=at)(*arrays) for f in (function, other))
    assert np.isclose(value.item(), expected.item(), rtol=1e-5)
    for ours, reference in zip(grads, theirs, strict=True):
        assert np.allclose(ours, reference, atol=atol)


def drawn(*shape: int, by: float = 1.0) -> mx.array:
    rng = np.random.default_rng([*shape])
    return mx.array(rng.normal(size=shape).astype(np.float32) * by)


def test_swiglu_and_its_gradients() -> None:
    seen = drawn(7, 33, by=2.0)
    # The rational sigmoid is 0 where the true one is below 2e-7, and gates of -16 multiply that.
    ours, mlx = (lambda g, u: (swiglu(g, u) * seen).sum()), (lambda g, u: (nn.silu(g) * u * seen).sum())
    close(ours, mlx, seen * 4, seen - 1, atol=5e-5)
    close(ours, mlx, seen, seen - 1)


def test_cross_entropy_and_its_gradient() -> None:
    targets, weights = mx.array([3, 0, 28, 3, 11]), drawn(5)
    close(
        lambda logits: (cross_entropy(logits, targets) * weights).sum(),
        lambda logits: (nn.losses.cross_entropy(logits, targets) * weights).sum(),
        drawn(5, 29, by=6.0),
    )


def test_rotation_and_its_gradient() -> None:
    weights, rope = drawn(2, 3, 40, 16), nn.RoPE(16, base=5000)
    close(
        lambda x: (rotate(x, 16, 5000, 1.0) * weights).sum(),
        lambda x: (rope(x) * weights).sum(),
        drawn(2, 3, 40, 16, by=2.0),
    )


@pytest.mark.parametrize(("block", "fewest"), [(1 << 18, 48), (150, 1), (0, 2)])
def test_attention_of_each_example_and_its_gradients(block: int, fewest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block of queries for each example, blocks of a few, and blocks of two; the first row ends in padding."""
    monkeypatch.setattr(cpu_attention, "_BLOCK", block)
    monkeypatch.setattr(cpu_attention, "_FEWEST", fewest)
    rows = (((0, 7), (7, 8), (8, 25)), ((0, 30),))
    segments = mx.array([[1] * 7 + [2] + [3] * 17 + [0] * 5, [1] * 30])
    mask = (mx.arange(30)[:, None] >= mx.arange(30)) & (segments[:, :, None] == segments[:, None])
    weights = drawn(2, 4, 30, 8) * (segments > 0)[:, None, :, None]
    cpu_attention._attention.cache_clear()
    close(
        lambda q, k, v: (cpu_attention.causal_attention(q, k, v, scale=0.4, rows=rows) * weights).sum(),
        lambda q, k, v: (mx.fast.scaled_dot_product_attention(q, k, v, scale=0.4, mask=mask[:, None]) * weights).sum(),
        drawn(2, 4, 30, 8),
        drawn(2, 2, 30, 8, by=1.5),
        drawn(2, 2, 30, 8, by=0.5),
    )
    cpu_attention._attention.cache_clear()


def test_attention_over_a_long_example_never_holds_all_of_its_weights() -> None:
    length, heads = 2048, 4
    queries, keys, values = drawn(1, heads, length, 8), drawn(1, 2, length, 8), drawn(1, 2, length, 8)
    mx.eval(queries, keys, values)

    def loss(*inputs: mx.array) -> mx.array:
        return cpu_attention.causal_attention(*inputs, scale=0.4, rows=(((0, length),),)).sum()

    held = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.value_and_grad(loss, argnums=(0, 1, 2))(queries, keys, values))
    # Without order among the blocks, in both passes, it is 2.6 times this.
    assert mx.get_peak_memory() - held < heads * length**2 / 2 * queries.itemsize


def trained(model: Any) -> Any:
    apply_lora(model, dict.fromkeys(find_targets(model, ("q_proj", "down_proj"), 1), 4), scale=2.0, dropout=0.0)
    for _, module in model.named_modules():
        if hasattr(module, "lora_b"):
            module.lora_b = drawn(*module.lora_b.shape, by=0.05)
    return model


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("chunk", [0, 8])
def test_the_trainers_forms_take_the_step_that_the_plain_model_takes(packed: bool, chunk: int) -> None:
    data = examples(2, 7)
    rows = [[data[i] for i in row] for row in pack([len(e.tokens) for e in data], 48)]
    inputs = to_inputs(collate_packed(rows) if packed else collate(data))
    plain, ours = tiny_model(), tiny_model()
    assert takes_cpu_forms(ours)
    fast = loss_for(ours, chunk, cross_entropy_for(ours))
    options: dict[str, Any] = {"compiled": False}
    step = make_step(trained(plain), optimizers.SGD(learning_rate=1.0), full_loss, **options)
    expected = step(inputs)
    for recompute in (False, True):
        model = trained(tiny_model())
        with training_forms(model, grad_checkpoint=recompute):
            found = make_step(model, optimizers.SGD(learning_rate=1.0), fast, **options)(inputs)
        assert found.tokens == expected.tokens
        assert np.isclose(found.loss, expected.loss, rtol=1e-5)
        reference = dict(tree_flatten(plain.trainable_parameters()))
        for name, value in tree_flatten(model.trainable_parameters()):
            assert np.allclose(value, reference[name], atol=1e-5), name


def test_other_types_keep_mlx_own_operations() -> None:
    model = tiny_model()
    model.set_dtype(mx.bfloat16)
    assert cross_entropy_for(model) is nn.losses.cross_entropy
    assert cross_entropy_for(tiny_model(), on_cpu=False) is nn.losses.cross_entropy


def test_stages_are_kept_in_order_and_only_while_somebody_records() -> None:
    first, second = mx.array(1), mx.array(2)
    stage(first)
    with recording() as stages:
        stage(first)
        stage(second, first)
    stage(second)
    assert [[array.item() for array in each] for each in stages] == [[1], [2, 1]]
