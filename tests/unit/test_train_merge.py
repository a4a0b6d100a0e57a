from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from optiq_core.adapters.fuse import fuse_adapter
from optiq_core.adapters.lora_config import read_lora_config
from optiq_core.base import load_base
from optiq_core.base.metadata import ModuleBits
from optiq_core.errors import TrainingError
from optiq_core.train.config import TrainConfig
from optiq_core.train.quantized import QaLoraLinear, QatLinear, rounded
from tests.unit.train_lab import Lab, stop_after

PROBE = mx.array([[1, 40, 50, 60, 70, 2]])
GRID = ModuleBits(4, 32, "affine")


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def logits(folder: Path, adapter: Path | None = None) -> np.ndarray:
    return np.array(mlx_lm.load(str(folder), adapter_path=str(adapter) if adapter else None)[0](PROBE))


@pytest.mark.parametrize("quantized", [True, False])
def test_qat_computes_with_what_a_merge_leaves_and_differentiates_straight_through(quantized: bool) -> None:
    mx.random.seed(0)
    linear: Any = nn.Linear(64, 48)
    weight = linear.weight
    if quantized:
        linear = nn.QuantizedLinear.from_linear(linear, group_size=32, bits=4)
        weight = mx.dequantize(linear.weight, linear.scales, linear.biases, group_size=32, bits=4)
    layer = QatLinear(linear, GRID, rank=4, scale=2.0)
    layer.lora_b = mx.random.normal(layer.lora_b.shape) * 0.1
    merged = weight + 2.0 * (layer.lora_a @ layer.lora_b).T
    x, target = mx.random.normal((3, 64)), mx.random.normal((3, 48))
    assert np.allclose(layer(x), x @ rounded(merged, GRID).T + linear.bias, atol=1e-5)
    assert not np.allclose(layer(x), x @ merged.T + linear.bias, atol=1e-2)
    layer.linear.freeze()
    grads = nn.value_and_grad(layer, lambda current: (current(x) * target).sum())(layer)[1]
    # dL/dw = target^T x, whatever rounding did; the chain rule through s (A B)^T gives the rest.
    slope = (target.T @ x).T
    assert np.allclose(grads["lora_a"], 2.0 * slope @ layer.lora_b.T, atol=1e-4)
    assert np.allclose(grads["lora_b"], 2.0 * layer.lora_a.T @ slope, atol=1e-4)


@pytest.mark.slow
def test_qat_loses_less_in_a_merge(lab: Lab) -> None:
    fields: dict[str, Any] = {"iters": 60, "learning_rate": 2e-3, "rank_scaling": "constant", "steps_per_eval": 60}
    kept = {}
    for name, bits in (("plain", 0), ("qat", 4)):
        result = lab.run(name, qat_bits=bits, **fields)
        fuse_adapter(lab.base_path, lab.root / name, lab.root / f"{name}-fused")
        lab_loss = _valid_loss(lab, lab.root / f"{name}-fused")
        kept[name] = (result.valid_loss, lab_loss)
    assert kept["qat"][0] is not None
    # What QAT's own validation says is what the merged base does.
    assert abs(kept["qat"][0] - kept["qat"][1]) < 0.05
    assert kept["qat"][1] < kept["plain"][1]


def _valid_loss(lab: Lab, folder: Path) -> float:
    from optiq_core.train.batches import collate
    from optiq_core.train.data import load_data
    from optiq_core.train.loss import full_loss, to_inputs

    base = load_base(folder)
    data = load_data(lab.data_path, base.tokenizer, lab.config())
    return float(full_loss(base.model, to_inputs(collate(data.valid.examples)))[0].item())


def test_qat_over_a_float_base_rounds_to_the_bits_asked_for(tmp_path: Path) -> None:
    lab = Lab(tmp_path, quantized=False)
    lab.run("adapter", qat_bits=3, iters=2, num_layers=1)
    layer = lab.base.model.layers[1].self_attn.q_proj
    assert isinstance(layer, QatLinear)
    assert (layer._grid.bits, layer._grid.group_size) == (3, 64)


def test_qalora_is_its_exported_adapter_and_merges_without_loss(lab: Lab) -> None:
    lab.run("adapter", method="qalora", iters=20, learning_rate=5e-3)
    trained = np.array(lab.base.model(PROBE))
    assert isinstance(lab.base.model.layers[1].self_attn.q_proj, QaLoraLinear)
    plain, served = logits(lab.base_path), logits(lab.base_path, lab.root / "adapter")
    assert np.abs(served - plain).max() > 0.1
    assert np.abs(served - trained).max() < 2e-3
    card = read_lora_config(lab.root / "adapter")
    assert (card.method, card.training is not None and card.training.config["method"]) == ("lora", "qalora")

    report = fuse_adapter(lab.base_path, lab.root / "adapter", lab.root / "fused")
    assert report.worst_cosine > 0.999
    fused, _ = mlx_lm.load(str(lab.root / "fused"))[:2]
    assert np.abs(np.array(fused(PROBE)) - served).max() < 2e-3
    folders = (lab.base_path, lab.root / "fused")
    before, after = (dict(tree_flatten(mlx_lm.load(str(folder))[0].parameters())) for folder in folders)
    name = "model.layers.1.self_attn.q_proj"
    assert np.array_equal(before[f"{name}.weight"], after[f"{name}.weight"])
    assert not np.array_equal(before[f"{name}.biases"], after[f"{name}.biases"])


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"method": "qalora", "dropout": 0.1}, {"qat_bits": 4}], ids=["qalora", "qat"])
def test_runs_go_on_bitwise(lab: Lab, fields: dict[str, Any]) -> None:
    lab.run("whole", **fields)
    lab.run("parts", control=stop_after(5), **fields)
    lab.run("parts", **fields)
    assert all(np.array_equal(value, lab.weights("parts")[name]) for name, value in lab.weights("whole").items())


def test_qalora_over_floats_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"method: qalora needs weights in affine groups; 'model\.layers\.0"):
        Lab(tmp_path, quantized=False).run("adapter", method="qalora")


@pytest.mark.parametrize(
    "fields", [{"qat_bits": 7}, {"qat_bits": 4, "dropout": 0.1}, {"qat_bits": 4, "method": "dora"}]
)
def test_settings_that_qat_cannot_have_are_named(fields: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=r"^qat_bits: ") as caught:
        TrainConfig(data_path="d", **fields).validate()
    assert caught.value.field == "qat_bits"


def test_the_planner_traces_both(lab: Lab) -> None:
    from optiq_core.planner.ceilings import ceiling_of
    from optiq_core.planner.planner import Planner

    planner = Planner(lab.base_path, ceiling_of("cpu"))
    plain = planner.plan(lab.config(max_seq_length=64))
    qat = planner.plan(lab.config(max_seq_length=64, qat_bits=4))
    pooled = planner.plan(lab.config(max_seq_length=64, method="qalora"))
    assert qat.primitives > plain.primitives
    assert pooled.trainable_parameters < plain.trainable_parameters
