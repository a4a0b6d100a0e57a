from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optiq_core.base import load_base
from optiq_core.bench.train_contest import Arena, Curve, stock_batches
from optiq_core.train.batches import BatchOrder
from optiq_core.train.data import Example
from tests.unit.tiny import tiny_model
from tests.unit.train_tiny import write_tiny_base


def examples(count: int) -> list[Example]:
    rng = np.random.default_rng(0)
    return [Example(tuple(rng.integers(1, 64, 12).tolist()), 4, line) for line in range(count)]


def test_stock_mlx_lm_and_our_step_have_one_loss_curve_on_the_same_batches() -> None:
    model = tiny_model()
    arena = Arena(model)
    options: dict[str, Any] = {"steps": 4, "batch_size": 2, "max_length": 64}
    stock = arena.stock(examples(8), **options)
    ours = arena.ours(stock_batches(examples(8), **options))
    assert ours.tokens == stock.tokens
    assert len(stock.shapes) == len(stock.losses) == 4
    assert np.allclose(ours.losses, stock.losses, atol=1e-5)
    assert not any("lora" in name for name, _ in model.named_modules())


def test_a_batch_in_parts_has_the_whole_batchs_losses() -> None:
    arena = Arena(tiny_model())
    order = BatchOrder(examples(8), batch_size=4, seed=0)
    whole = arena.ours(order[i] for i in range(2))
    parts = arena.ours(order.parts(i, 1) for i in range(2))
    assert parts.tokens == whole.tokens
    assert np.allclose(parts.losses, whole.losses, atol=1e-5)


def test_speed_leaves_out_the_first_step_of_a_shape() -> None:
    curve = Curve(losses=[1.0] * 4, seconds=[9.0, 2.0, 7.0, 1.0], tokens=[10, 20, 10, 10])
    curve.shapes = [(1, 8), (1, 8), (1, 16), (1, 8)]
    assert curve.tokens_per_second == pytest.approx(30 / 3)


@pytest.mark.slow
def test_what_a_merge_keeps_is_measured_on_the_same_data_and_leaves_the_base_alone(tmp_path: Path) -> None:
    from optiq_core.bench.train_merge import kept_by_a_merge

    base = load_base(write_tiny_base(tmp_path / "base"))
    found = kept_by_a_merge(base, steps=2, narrate=lambda text: None)
    assert found["bits"] == [4, 8]
    assert [kept["bits"] for kept in found["from_float"].values()] == [[4], [2]]
    assert found["loss_adapter"] < found["loss_bare"]
    assert {"kept_with", "kept_without"} <= found.keys()
    for kept in (found, *found["from_float"].values()):
        assert kept["kept_without"] == pytest.approx(
            (found["loss_bare"] - kept["loss_merged_without"]) / (found["loss_bare"] - found["loss_adapter"])
        )
    assert found["from_float"]["2"]["loss_merged_with"] != found["loss_merged_with"]
    assert not any("lora_a" in module for module in base.model.modules())
