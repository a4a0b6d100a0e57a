"""The decode step's own modules compute what mlx's and mlx-lm's do."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models import llama, qwen2
from mlx_lm.models.activations import swiglu
from mlx_lm.models.cache import BatchKVCache

from optiq_core.adapters.kinds import adaptable_modules, linear_dims
from optiq_core.adapters.tensors import base_weight
from optiq_core.base import attention
from optiq_core.base.blocked import BlockedEmbedding, BlockedLinear, rational_swiglu
from optiq_core.engine.cpu import prepare_for_cpu
from optiq_core.engine.sampling import RowSampler, restrict, sample_rows
from optiq_core.engine.types import Sampling
from tests.unit.tiny import tiny_model


def tiny_qwen() -> qwen2.Model:
    """Biases on q, k and v, a head of its own."""
    mx.random.seed(3)
    model = qwen2.Model(
        qwen2.ModelArgs(
            model_type="qwen2",
            hidden_size=64,
            num_hidden_layers=3,
            intermediate_size=128,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-6,
            vocab_size=96,
            rope_theta=10000,
            tie_word_embeddings=False,
        )
    )
    for _, module in model.named_modules():
        if isinstance(module, nn.Linear) and "bias" in module:
            module.bias = mx.random.normal(module.bias.shape)
    mx.eval(model.parameters())
    return model


@pytest.mark.parametrize("make", [tiny_model, tiny_qwen])
def test_a_model_prepared_for_the_cpu_is_the_same_function(make: type[llama.Model]) -> None:
    plain, prepared = make(), make()
    shapes = {path: linear_dims(module) for path, module in adaptable_modules(plain).items()}
    weights = {path: base_weight(module) for path, module in adaptable_modules(plain).items()}
    prepare_for_cpu(prepared)
    modules = adaptable_modules(prepared)
    assert {path: linear_dims(module) for path, module in modules.items()} == shapes
    assert all(isinstance(module, BlockedLinear) for module in modules.values())
    assert all(mx.array_equal(base_weight(module), weights[path]).item() for path, module in modules.items())

    # Decode of padded rows, a prompt of many rows, and a second pass at other positions.
    for tokens in (mx.arange(240).reshape(3, 80) % 61, mx.array([[5], [6], [7]]), mx.array([[9], [1], [2]])):
        outputs = []
        for model in (plain, prepared):
            cache = [BatchKVCache([0, 2, 1]) for _ in model.layers]
            model(mx.array([[1, 2, 3, 4]] * 3), cache=cache)
            outputs.append(model(tokens, cache=cache))
        assert mx.abs(outputs[0] - outputs[1]).max().item() < 2e-5
        assert mx.abs(outputs[0]).max().item() > 0.1


def test_a_blocked_embedding_looks_up_and_projects() -> None:
    plain = nn.Embedding(96, 64)
    blocked = BlockedEmbedding(plain.weight)
    ids = mx.array([[0, 95, 33], [64, 63, 1]])
    assert mx.array_equal(blocked(ids), plain(ids)).item()
    x = mx.random.normal((2, 3, 64))
    assert mx.abs(blocked.as_linear(x) - plain.as_linear(x)).max().item() < 1e-5
    assert blocked.dims == (96, 64)
    assert mx.array_equal(blocked.dense_weight, plain.weight).item()


def test_swiglu_without_exp_is_swiglu() -> None:
    gate = mx.concatenate([mx.linspace(-30, 30, 4001), mx.array([-1e4, 1e4, 0.0])])
    ours, exact = rational_swiglu(gate, mx.ones_like(gate)), swiglu(gate, mx.ones_like(gate))
    assert mx.abs(ours - exact).max().item() < 4e-6
    assert mx.abs((ours - exact) / mx.maximum(mx.abs(exact), 1)).max().item() < 4e-6


def test_a_rows_draw_does_not_depend_on_the_other_rows() -> None:
    logits = mx.random.normal((6, 500)) * 3
    samplings = [
        Sampling(0.7, seed=1),
        Sampling(),
        Sampling(1.3, top_p=0.9, seed=2),
        Sampling(1.0, top_k=5, min_p=0.05, seed=3),
        Sampling(),
        Sampling(0.2, seed=4),
    ]

    def streams() -> list[RowSampler | None]:
        return [RowSampler(s) if s.temperature else None for s in samplings]

    together, alone = streams(), streams()
    for _ in range(20):
        drawn = sample_rows(logits, together).tolist()
        single = [sample_rows(logits[i : i + 1], [alone[i]]).item() for i in range(6)]
        assert drawn == single
    assert drawn[1] == mx.argmax(logits[1]).item()
    without = sample_rows(logits, [RowSampler(Sampling(1.5, seed=i)) for i in range(6)]).tolist()
    assert without != sample_rows(logits, [RowSampler(Sampling(1.5, seed=9 + i)) for i in range(6)]).tolist()


def test_restrictions_differ_by_row() -> None:
    logits = mx.log(mx.array([[0.5, 0.3, 0.15, 0.05]] * 3)) + 7
    out = restrict(logits, [Sampling(1.0, top_k=1), Sampling(1.0), Sampling(1.0, min_p=0.2)])
    assert [[i for i, v in enumerate(row) if v > -1e30] for row in out.tolist()] == [[0], [0, 1, 2, 3], [0, 1, 2]]


@pytest.mark.parametrize("kind", ["causal", "boolean", "added", "none"])
def test_attention_in_blocks_is_attention(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mx.random.seed(5)
    length, total = (1 if kind == "none" else 37), 90
    queries = mx.random.normal((2, 6, length, 16)) * 4
    keys, values = (mx.random.normal((2, 3, total, 16)) for _ in range(2))
    # One score stands far above the others, whose weights underflow.
    queries[0, 1, 0] = 300 * keys[0, 0, 7]
    mask = mx.arange(total - length, total)[:, None] >= mx.arange(total)
    mask = (mask & (mx.array([0, 9])[:, None, None] <= mx.arange(total)))[:, None]
    given = {"causal": "causal", "boolean": mask, "added": mx.where(mask, 0.0, -mx.inf), "none": None}[kind]
    exact = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.25, mask=given)
    for block in (attention._BLOCK, 2 * 6 * total * 5):
        monkeypatch.setattr(attention, "_BLOCK", block)
        ours = attention.attend(queries, keys, values, scale=0.25, mask=given)
        assert mx.abs(ours - exact).max().item() < 5e-6
    assert mx.abs(exact).max().item() > 0.5


def test_the_parts_of_an_exponential_are_as_near_as_float32_can_tell() -> None:
    x = mx.linspace(-40, 0, 100_001)
    mantissa, power = attention.exp_parts(1.0)(x, mx.array(0.0))
    ours = np.array(mantissa * mx.view(power, mx.float32), np.float64)
    exact = np.exp(np.array(x, np.float64))
    assert np.abs(ours / exact - 1).max() < 3e-7
