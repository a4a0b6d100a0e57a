from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx_lm.models import llama
from mlx_lm.tuner.trainer import default_loss

from optiq_core.train.batches import BatchOrder
from optiq_core.train.data import Example
from optiq_core.train.loss import full_loss, loss_for, sparse_loss, split_head, to_inputs
from tests.unit.tiny import tiny_model


def untied_model() -> llama.Model:
    args = tiny_model().args
    model = llama.Model(llama.ModelArgs(**{**vars(args), "tie_word_embeddings": False}))
    mx.eval(model.parameters())
    return model


def quantized_model() -> llama.Model:
    model = tiny_model()
    nn.quantize(model, group_size=32, bits=4)
    return model


class CappedModel(llama.Model):
    """A model whose logits are not what its head says, like those that cap or scale them."""

    def __call__(self, inputs: mx.array, cache: Any = None, input_embeddings: Any = None) -> mx.array:
        return mx.tanh(super().__call__(inputs, cache, input_embeddings)) * 0.5


def batches(count: int = 4) -> list[Any]:
    rng = np.random.default_rng(0)
    examples = [
        Example(tuple(rng.integers(1, 64, length).tolist()), int(rng.integers(1, length)))
        for length in rng.integers(2, 40, 20).tolist()
    ]
    order = BatchOrder(examples, batch_size=6, seed=0)
    return [order[position] for position in range(count)]


@pytest.mark.parametrize("make", [tiny_model, untied_model, quantized_model])
def test_both_forms_equal_mlx_lms_loss_and_gradient(make: Any) -> None:
    model = make()
    parts = split_head(model)
    assert parts is not None
    model.freeze()
    model.layers[0].input_layernorm.unfreeze()
    for batch in batches():
        inputs = to_inputs(batch)
        reference = nn.value_and_grad(model, lambda m, i: default_loss(m, i["tokens"], i["spans"]))
        (expected, tokens), expected_grads = reference(model, inputs)
        assert tokens.item() == batch.loss_tokens
        for form in (full_loss, loss_for(model), loss_for(model, chunk=24)):
            (found, count), grads = nn.value_and_grad(model, form)(model, inputs)
            assert count.item() == batch.loss_tokens
            assert np.isclose(found.item(), expected.item(), rtol=1e-5)
            weight = grads["model"]["layers"][0]["input_layernorm"]["weight"]
            assert mx.allclose(
                weight, expected_grads["model"]["layers"][0]["input_layernorm"]["weight"], rtol=1e-3, atol=1e-6
            ).item()


def test_half_precision_logits_are_summed_in_float32() -> None:
    model = tiny_model()
    model.set_dtype(mx.bfloat16)
    parts = split_head(model)
    assert parts is not None
    inputs = to_inputs(batches(1)[0])
    value, _ = full_loss(model, inputs)
    assert value.dtype == mx.float32
    assert np.isclose(value.item(), sparse_loss(model, *parts, inputs)[0].item(), rtol=1e-2)


def test_a_model_that_changes_its_logits_after_the_head_falls_back_to_the_plain_form() -> None:
    model = CappedModel(tiny_model().args)
    mx.eval(model.parameters())
    assert split_head(model) is None
    assert loss_for(model) is full_loss


def test_a_model_of_another_make_falls_back_to_the_plain_form() -> None:
    assert split_head(nn.Linear(4, 4)) is None
