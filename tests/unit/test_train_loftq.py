from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from optiq_core.adapters.tensors import base_weight
from optiq_core.base import load_base
from optiq_core.errors import TrainingError
from optiq_core.train.config import TrainConfig
from optiq_core.train.data import load_data
from optiq_core.train.loftq import leading
from optiq_core.train.trainer import train
from tests.unit.train_lab import Lab
from tests.unit.train_tiny import write_tiny_base, write_tiny_data


def test_leading_triplets_are_those_of_the_whole_decomposition() -> None:
    matrix = np.random.default_rng(0).standard_normal((90, 60)).astype(np.float32)
    left, values, right = leading(mx.array(matrix), 5)
    whole = np.linalg.svd(matrix, full_matrices=False)
    best = (whole[0][:, :5] * whole[1][:5]) @ whole[2][:5]
    assert np.allclose(values, whole[1][:5], rtol=0.02)
    error, least = np.linalg.norm(matrix - (left * values) @ right), np.linalg.norm(matrix - best)
    assert least <= error * 1.0001
    assert error < least * 1.005


def test_a_run_begins_nearer_to_the_float_base_and_its_adapter_is_an_ordinary_one(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path / "base", quantized=False)
    data_path = write_tiny_data(tmp_path / "data")
    exact = load_base(folder)
    base = load_base(folder, load_in="4bit")
    probe = mx.array([[1, 40, 50, 60, 70, 2]])
    rounded = np.array(base.model(probe))
    config = TrainConfig(
        data_path=str(data_path),
        init="loftq",
        rank=16,
        target_modules=("all-linear",),
        iters=1,
        learning_rate=1e-12,
    )
    weights = {path: base_weight(m) for path, m in exact.model.named_modules() if isinstance(m, nn.Linear)}
    plain = {path: base_weight(m) for path, m in base.model.named_modules() if path in weights}
    data = load_data(data_path, base.tokenizer, config)
    train(base, config, data=data, out_dir=tmp_path / "out", checkpoint_dir=tmp_path / "checkpoint")
    layers = {path: m for path, m in base.model.named_modules() if "lora_a" in m}
    assert len(layers) == 14
    for path, layer in layers.items():
        change = layer.scale * (layer.lora_a @ layer.lora_b).T
        before = mx.linalg.norm(weights[path] - plain[path]).item()
        after = mx.linalg.norm(weights[path] - plain[path] - change).item()
        assert after < before * 0.85, path
    target = np.array(exact.model(probe))
    assert np.abs(np.array(base.model(probe)) - target).mean() < np.abs(rounded - target).mean()


@pytest.mark.parametrize(("quantized", "said"), [(True, "has them quantized"), (False, "is not quantized, so that")])
def test_bases_that_loftq_cannot_begin_from_are_named(tmp_path: Path, quantized: bool, said: str) -> None:
    with pytest.raises(TrainingError, match=f"^init: .*{said}") as caught:
        Lab(tmp_path, quantized=quantized).run("adapter", init="loftq")
    assert caught.value.field == "init"
