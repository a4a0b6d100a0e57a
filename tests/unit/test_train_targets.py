"""The gradient probe: it measures what it says and leaves the model as it was."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten

from optiq_core.base import load_base
from optiq_core.train.batches import BatchOrder
from optiq_core.train.config import TrainConfig
from optiq_core.train.data import load_data
from optiq_core.train.loss import loss_for, to_inputs
from optiq_core.train.targets import gradient_norms, rank_targets, ranks_of
from tests.unit.train_tiny import write_tiny_base, write_tiny_data


def test_the_probe_estimates_the_norms_of_the_weights_own_gradients(tmp_path: Path) -> None:
    base = load_base(write_tiny_base(tmp_path / "base", quantized=False))
    config = TrainConfig(data_path=str(write_tiny_data(tmp_path / "data")), target_modules=("q_proj", "down_proj"))
    data = load_data(config.data_path, base.tokenizer, config)
    batch = BatchOrder(data.train.examples, batch_size=4, seed=0)[0]
    loss = loss_for(base.model)
    targets = rank_targets(base.model, base.metadata, config)
    assert [(t.input_dims, t.output_dims) for t in targets] == [(128, 64), (64, 64)] * 2

    base.model.unfreeze()
    _, gradients = nn.value_and_grad(base.model, loss)(base.model, to_inputs(batch))
    true = {name: np.linalg.norm(np.array(value)) for name, value in tree_flatten(gradients)}
    draws = [gradient_norms(base.model, targets, [batch], loss, seed=seed) for seed in range(20)]
    for target in targets:
        squares = [draw[target.path] ** 2 for draw in draws]
        # Rank 8 of variance 1 / (3 in) each: the square's expectation is 8 / 3 of the true one.
        assert 0.8 < np.mean(squares) / (8 / 3 * true[f"{target.path}.weight"] ** 2) < 1.25


def test_a_probed_model_is_as_it_was_and_its_ranks_are_reproducible(tmp_path: Path) -> None:
    base = load_base(write_tiny_base(tmp_path / "base"))
    config = TrainConfig(data_path=str(write_tiny_data(tmp_path / "data")), rank_scaling="gradient", rank=8)
    data = load_data(config.data_path, base.tokenizer, config)
    tokens = mx.array([[5, 6, 7]])
    before = np.array(base.model(tokens))
    names = [path for path, _ in base.model.named_modules()]
    loss = loss_for(base.model)
    targets = rank_targets(base.model, base.metadata, config)
    ranks = ranks_of(base.model, targets, config, data=data, loss=loss)
    assert ranks == ranks_of(base.model, targets, config, data=data, loss=loss)
    assert all(4 <= rank <= 16 for rank in ranks.values())
    assert [path for path, _ in base.model.named_modules()] == names
    assert np.array_equal(before, np.array(base.model(tokens)))
