from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm.tuner.dora import DoRALinear

from optiq_core.adapters.format import read_manifest
from optiq_core.errors import TrainingError
from optiq_core.train.config import TrainConfig
from optiq_core.train.dora import DoraLinear
from optiq_core.train.events import Progress
from tests.unit.train_lab import Lab, stop_after

PROBE = mx.array([[1, 40, 50, 60, 70, 2]])


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def filled(layer: Any, seed: int = 0) -> Any:
    """Give the low-rank path and the magnitude visible values; every layer the same ones."""
    rng = np.random.default_rng(seed)
    for name in ("lora_a", "lora_b"):
        layer[name] = mx.array(rng.normal(size=layer[name].shape).astype(np.float32) * 0.1)
    layer.m = layer.m * mx.array(rng.uniform(0.7, 1.3, layer.m.shape).astype(np.float32))
    return layer


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bits", [None, 2, 3, 4, 5, 6, 8])
def test_dora_is_mlx_lms_function_and_gradient_on_every_width(bits: int | None, bias: bool) -> None:
    mx.random.seed(0)
    linear: Any = nn.Linear(64, 96, bias=bias)
    dense = linear
    if bits:
        linear = nn.QuantizedLinear.from_linear(linear, group_size=32, bits=bits)
        dense = nn.Linear(64, 96, bias=bias)
        dense.weight = mx.dequantize(linear.weight, linear.scales, linear.biases, group_size=32, bits=bits)
        if bias:
            dense.bias = linear.bias
    ours = filled(DoraLinear(linear, rank=4, scale=2.0, dropout=0.0))
    theirs = filled(DoRALinear.from_base(dense, r=4, scale=2.0))
    x = mx.array(np.random.default_rng(1).normal(size=(2, 5, 64)).astype(np.float32))
    target = mx.array(np.random.default_rng(2).normal(size=(2, 5, 96)).astype(np.float32))

    def loss(layer: Any) -> mx.array:
        return (layer(x) * target).sum()

    assert np.allclose(ours(x), theirs(x), atol=2e-4)
    for layer in (ours, theirs):
        layer.linear.freeze()
    mine, stock = (dict(tree_flatten(nn.value_and_grad(layer, loss)(layer)[1])) for layer in (ours, theirs))
    assert mine.keys() == {"lora_a", "lora_b", "m"}
    for name, value in mine.items():
        assert np.allclose(value, stock[name], atol=2e-3, rtol=1e-3), name


def test_dora_starts_as_the_base_that_is_served() -> None:
    mx.random.seed(0)
    linear = nn.QuantizedLinear.from_linear(nn.Linear(64, 96), group_size=32, bits=3)
    x = mx.random.normal((3, 64))
    assert np.allclose(DoraLinear(linear, rank=4, scale=20.0, dropout=0.0)(x), linear(x), atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "dora", "rank_scaling": "constant"},
        {"method": "dora", "rslora": True},
        {"rslora": True},
        {"rslora": True, "rank_scaling": "constant"},
    ],
    ids=["dora", "dora-rslora-ranks", "rslora-ranks", "rslora"],
)
def test_stock_mlx_lm_gives_the_trained_models_logits(lab: Lab, fields: dict[str, Any]) -> None:
    lab.run("adapter", **fields)
    trained = np.array(lab.base.model(PROBE))
    stock, _ = mlx_lm.load(str(lab.base_path), adapter_path=str(lab.root / "adapter"))[:2]
    plain, _ = mlx_lm.load(str(lab.base_path))[:2]
    assert np.abs(trained - np.array(plain(PROBE))).max() > 0.05
    assert np.abs(trained - np.array(stock(PROBE))).max() < 2e-3
    assert read_manifest(lab.root / "adapter").kind == fields.get("method", "lora")


def test_rslora_keeps_the_scale_at_the_base_rank_and_divides_by_the_root_elsewhere() -> None:
    config = TrainConfig(data_path="d", rank=8, scale=10.0, rslora=True)
    assert config.scale_at(8) == 10.0
    assert config.scale_at(32) == pytest.approx(5.0)
    assert TrainConfig(data_path="d", scale=10.0).scale_at(32) == 10.0


def test_loraplus_moves_b_faster_by_its_ratio(lab: Lab) -> None:
    common: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 1e-3, "iters": 1, "rank_scaling": "constant"}
    lab.run("plain", **common)
    lab.run("plus", loraplus_ratio=8.0, **common)
    for name, value in lab.weights("plain").items():
        # The gradient at A is zero in the first step.
        factor = 8.0 if name.endswith("lora_b") else 1.0
        assert np.allclose(value * factor, lab.weights("plus")[name], atol=1e-7), name


def test_loraplus_dora_and_a_schedule_go_on_bitwise(lab: Lab) -> None:
    fields: dict[str, Any] = {"loraplus_ratio": 4.0, "method": "dora", "lr_schedule": "linear", "warmup_steps": 2}
    lab.run("whole", **fields)
    lab.run("parts", control=stop_after(5), **fields)
    lab.run("parts", **fields)
    assert all(np.array_equal(value, lab.weights("parts")[name]) for name, value in lab.weights("whole").items())
    reports: list[Progress] = lab.of(Progress)
    assert reports[-1].learning_rate < 1e-3


def test_dora_on_what_is_no_linear_module_is_refused_by_name() -> None:
    from optiq_core.train.layers import apply_lora
    from tests.unit.tiny import tiny_model

    model = tiny_model()
    with pytest.raises(TrainingError, match=r"method: dora adapts linear modules; 'model\.embed_tokens'"):
        apply_lora(model, {"model.embed_tokens": 4}, scale=1.0, dropout=0.0, method="dora")


def test_the_planner_knows_doras_step(lab: Lab) -> None:
    from optiq_core.planner.ceilings import ceiling_of
    from optiq_core.planner.planner import Planner

    planner = Planner(lab.base_path, ceiling_of("cpu"))
    plain, dora = (planner.plan(lab.config(method=m, max_seq_length=64)) for m in ("lora", "dora"))
    assert dora.trainable_parameters > plain.trainable_parameters
    assert dora.primitives > plain.primitives


def test_trained_magnitudes_are_what_dora_adds_to_the_files(lab: Lab) -> None:
    lab.run("adapter", method="dora", iters=2)
    names = {name.rsplit(".", 1)[-1] for name in lab.weights("adapter")}
    assert names == {"lora_a", "lora_b", "m"}
    assert tree_map(lambda value: bool(np.isfinite(value).all()), lab.weights("adapter"))


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_activations_in_bfloat16_learn_the_same_and_adapters_stay_in_float32(lab: Lab, method: str) -> None:
    losses = {}
    for name in ("", "bfloat16"):
        lab.run(name or "plain", compute_dtype=name, method=method, iters=2)
        losses[name] = lab.of(Progress)[0].train_loss
        layer = lab.base.model.layers[1].self_attn.q_proj
        assert {layer.lora_a.dtype, layer.lora_b.dtype} == {mx.float32}
        assert lab.base.model(PROBE).dtype == (mx.bfloat16 if name else mx.float32)
    assert losses["bfloat16"] == pytest.approx(losses[""], rel=0.02)


def test_the_planner_traces_bfloat16(lab: Lab) -> None:
    from optiq_core.planner.ceilings import ceiling_of
    from optiq_core.planner.planner import Planner

    planner = Planner(lab.base_path, ceiling_of("cpu"))
    plain, half = (
        planner.plan(lab.config(max_seq_length=128, target_modules=("all-linear",), compute_dtype=name))
        for name in ("float32", "bfloat16")
    )
    assert half.base_bytes < plain.base_bytes * 0.6
    # Float32 has the CPU's leaner operations.
    assert half.peak_bytes < plain.peak_bytes
