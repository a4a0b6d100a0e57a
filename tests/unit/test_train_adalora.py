from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

from optiq_core.adapters.format import read_manifest
from optiq_core.adapters.lora_config import read_lora_config
from optiq_core.errors import TrainingError
from optiq_core.train.adalora import AdaLinear, Pruner, with_orthogonality
from optiq_core.train.config import TrainConfig
from optiq_core.train.events import Started
from optiq_core.train.layers import apply_lora, find_targets
from optiq_core.train.ranks import Target, adalora_budget, allocate_ranks
from tests.unit.tiny import tiny_model
from tests.unit.train_lab import Lab, stop_after

PROBE = mx.array([[1, 40, 50, 60, 70, 2]])
FIELDS: dict[str, Any] = {"rank_scaling": "adalora", "iters": 30, "learning_rate": 1e-2, "steps_per_eval": 100}


def test_a_run_ends_within_its_budget_with_true_ranks_that_mlx_lm_loads(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run("adapter", **FIELDS)
    assert lab.of(Started)[0].ranks == {"6": 4}
    trained = np.array(lab.base.model(PROBE))
    card = read_lora_config(lab.root / "adapter")
    modules = read_manifest(lab.root / "adapter").modules
    assert {module.path: module.rank for module in modules} == card.ranks
    spent = sum(module.rank * (module.input_dims + module.output_dims) for module in modules)
    # Four modules at rank 4: q is 64 by 64, v is 64 by 32.
    assert 4 * 2 * (128 + 96) * 0.9 < spent <= 4 * 2 * (128 + 96)
    assert len(set(card.ranks.values())) > 1
    stock, _ = mlx_lm.load(str(lab.base_path), adapter_path=str(lab.root / "adapter"))[:2]
    plain, _ = mlx_lm.load(str(lab.base_path))[:2]
    assert np.abs(trained - np.array(plain(PROBE))).max() > 0.05
    assert np.abs(trained - np.array(stock(PROBE))).max() < 2e-3


@pytest.mark.parametrize(
    "stop", [pytest.param(2, marks=pytest.mark.slow), 14, pytest.param(27, marks=pytest.mark.slow)]
)
def test_ratings_and_pruned_ranks_go_on_bitwise(tmp_path: Path, stop: int) -> None:
    lab = Lab(tmp_path)
    lab.run("whole", dropout=0.1, **FIELDS)
    assert lab.run("parts", dropout=0.1, control=stop_after(stop), **FIELDS).outcome == "stopped"
    lab.run("parts", dropout=0.1, **FIELDS)
    assert lab.weights("whole").keys() == lab.weights("parts").keys()
    assert all(np.array_equal(value, lab.weights("parts")[name]) for name, value in lab.weights("whole").items())


def pruner(steps: int = 100) -> tuple[Any, Pruner]:
    model = tiny_model()
    paths = find_targets(model, ("q_proj",), -1)
    apply_lora(model, dict.fromkeys(paths, 6), scale=1.0, dropout=0.0, dynamic=True)
    return model, Pruner(model, costs=dict.fromkeys(paths, 128), budget=8 * 128, steps=steps)


def test_the_budget_falls_along_a_cubic_curve() -> None:
    _, tool = pruner()
    assert [tool.budget_at(step) // 128 for step in (0, 9, 10, 40, 70, 99)] == [12, 12, 12, 8, 8, 8]
    assert tool.budget_at(25) == int(8 * 128 + 4 * 128 * 0.75**3)


def test_the_triplets_with_gradients_are_kept() -> None:
    model, tool = pruner()
    layers = [m for m in model.modules() if isinstance(m, AdaLinear)]
    for layer in layers:
        layer.lora_e = mx.ones((6,))
    rng = np.random.default_rng(0)
    for _ in range(3):
        grads = {
            name: mx.array(rng.normal(size=v.shape) * 1e-3) for name, v in tree_flatten(model.trainable_parameters())
        }
        for name in grads:
            if name.startswith("model.layers.1") and name.endswith("lora_e"):
                grads[name] = mx.array([9.0, 0, 8.0, 0, 7.0, 6.0]) * float(rng.uniform(0.5, 2))
            if name.startswith("model.layers.0") and name.endswith("lora_e"):
                grads[name] = mx.array([0, 5.0, 4.0, 3.0, 0, 2.0]) * float(rng.uniform(0.5, 2))
        tool.rate(tree_unflatten(list(grads.items())))
    tool.prune(70)
    found = {path: np.flatnonzero(np.array(layer.lora_e)).tolist() for path, layer in tool._layers.items()}
    assert found == {"model.layers.0.self_attn.q_proj": [1, 2, 3, 5], "model.layers.1.self_attn.q_proj": [0, 2, 4, 5]}
    assert tool.ranks() == dict.fromkeys(found, 4)


def test_orthogonality_changes_the_gradient_and_not_the_loss() -> None:
    model, _ = pruner()

    def loss(current: Any, inputs: Any) -> tuple[mx.array, mx.array]:
        return mx.square(current(inputs["tokens"])).mean(), mx.array(1)

    inputs = {"tokens": PROBE % 64}
    plain = nn.value_and_grad(model, loss)(model, inputs)
    drawn = nn.value_and_grad(model, with_orthogonality(loss))(model, inputs)
    assert plain[0][0].item() == drawn[0][0].item()
    for (name, a), (_, b) in zip(tree_flatten(plain[1]), tree_flatten(drawn[1]), strict=True):
        if name.endswith("lora_a"):
            layer = dict(model.named_modules())[name.rpartition(".")[0]]
            # Of 0.5 / 4 * |A^T A - 1|^2, by hand.
            expected = 0.5 / 4 * 4 * layer.lora_a @ (layer.lora_a.T @ layer.lora_a - mx.eye(6))
            assert np.allclose(b - a, expected, atol=1e-5)


def test_budgets_are_those_of_rank_or_of_another_scheme() -> None:
    targets = [Target("layers.0.q_proj", 64, 64, bits=4), Target("layers.1.v_proj", 64, 32, bits=8)]
    assert allocate_ranks(targets, rank=3, scaling="adalora") == {"layers.0.q_proj": 5, "layers.1.v_proj": 5}
    assert adalora_budget(targets, rank=3) == 3 * (128 + 96)
    assert adalora_budget(targets, rank=3, budget_like="by_bits:8") == 8 * 128 + 16 * 96


@pytest.mark.parametrize("fields", [{"method": "dora"}, {"rslora": True}, {"qat_bits": 4}])
def test_what_adalora_cannot_be_combined_with_is_named(fields: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match="adalora has layers of its own"):
        TrainConfig(data_path="d", rank_scaling="adalora", **fields).validate()


def test_the_planner_traces_its_layers(tmp_path: Path) -> None:
    from optiq_core.planner.ceilings import ceiling_of
    from optiq_core.planner.planner import Planner

    lab = Lab(tmp_path)
    planner = Planner(lab.base_path, ceiling_of("cpu"))
    found = planner.plan(lab.config(max_seq_length=64, rank_scaling="adalora"))
    assert found.trainable_parameters == 2 * 6 * (128 + 96 + 2)
