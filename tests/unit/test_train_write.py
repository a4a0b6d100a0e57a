from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import msgspec
import numpy as np
import pytest

from optiq_core.adapters.format import read_manifest
from optiq_core.adapters.lora_config import SCHEMA_PATH, LoraConfig, json_schema, read_lora_config
from optiq_core.adapters.write import write_adapter
from optiq_core.base import load_base
from optiq_core.errors import AdapterError
from optiq_core.train.config import TrainConfig
from optiq_core.train.data import load_data
from optiq_core.train.trainer import train
from tests.unit.train_tiny import EIGHT_BITS, write_tiny_base, write_tiny_data

PROBE = [[1, 40, 50, 60, 70, 2]]


@pytest.mark.parametrize("scaling", ["by_bits", "constant"])
@pytest.mark.parametrize("dense", [True, False], ids=["dense", "quantized"])
def test_stock_mlx_lm_gives_the_trained_models_logits(tmp_path: Path, scaling: Any, dense: bool) -> None:
    folder = write_tiny_base(tmp_path / "base")
    base = load_base(folder)
    if not dense:
        model, tokenizer = mlx_lm.load(str(folder))[:2]
        base = type(base)(**{**vars(base), "model": model, "tokenizer": tokenizer})
    plain = np.array(base.model(mx.array(PROBE)))
    data_path = write_tiny_data(tmp_path / "data")
    config = TrainConfig(data_path=str(data_path), rank=4, rank_scaling=scaling, iters=5, learning_rate=1e-3)
    data = load_data(data_path, base.tokenizer, config)
    train(base, config, data=data, out_dir=tmp_path / "adapter", checkpoint_dir=tmp_path / "checkpoint")
    trained = np.array(base.model(mx.array(PROBE)))
    stock, _ = mlx_lm.load(str(folder), adapter_path=str(tmp_path / "adapter"))[:2]
    loaded = np.array(stock(mx.array(PROBE)))
    assert np.abs(trained - plain).max() > 0.05
    assert np.abs(trained - loaded).max() < 2e-3

    card = read_lora_config(tmp_path / "adapter")
    ranks = {module.path: module.rank for module in read_manifest(tmp_path / "adapter").modules}
    assert ranks == card.ranks
    expected = {path: 8 if scaling == "by_bits" and path in EIGHT_BITS else 4 for path in ranks}
    assert ranks == expected
    assert card.stored_scale == (1.0 if scaling == "by_bits" else 20.0)
    assert {card.bits[path] for path in EIGHT_BITS} == {8}
    assert (card.base_model, card.versions.keys()) == ("base", {"optiq", "mlx", "mlx-lm"})


def card(ranks: dict[str, int]) -> LoraConfig:
    return LoraConfig(base_model="b", rank=2, rank_scaling="by_bits", scale=3.0, dropout=0.0, ranks=ranks)


def tensors(ranks: dict[str, int], inputs: int = 5, outputs: int = 4) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {}
    for path, rank in ranks.items():
        made[f"{path}.lora_a"] = rng.normal(size=(inputs, rank)).astype(np.float32)
        made[f"{path}.lora_b"] = rng.normal(size=(rank, outputs)).astype(np.float32)
    return made


def test_padding_and_folding_keep_every_product(tmp_path: Path) -> None:
    ranks = {"m.a": 2, "m.b": 4}
    made = tensors(ranks)
    written = write_adapter(tmp_path / "adapter", made, card(ranks))
    stored = mx.load(str(tmp_path / "adapter" / "adapters.safetensors"))
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["lora_parameters"] == {"rank": 4, "scale": 1.0, "dropout": 0.0, "keys": ["m.a", "m.b"]}
    assert config["num_layers"] == -1
    for path in ranks:
        product = np.array(stored[f"{path}.lora_a"]) @ np.array(stored[f"{path}.lora_b"])
        assert np.allclose(product, 3.0 * made[f"{path}.lora_a"] @ made[f"{path}.lora_b"], atol=1e-5)
    assert written == read_lora_config(tmp_path / "adapter")


def test_experts_are_padded_on_their_own_axes(tmp_path: Path) -> None:
    ranks = {"m.a": 2, "m.b": 3}
    made = {
        f"{path}.{leaf}": np.ones((6, rank, 5) if leaf == "lora_a" else (6, 4, rank), np.float32)
        for path, rank in ranks.items()
        for leaf in ("lora_a", "lora_b")
    }
    write_adapter(tmp_path / "adapter", made, card(ranks))
    stored = mx.load(str(tmp_path / "adapter" / "adapters.safetensors"))
    assert stored["m.a.lora_a"].shape == (6, 3, 5)
    assert stored["m.a.lora_b"].shape == (6, 4, 3)


def test_the_same_training_gives_the_same_bytes_and_an_existing_folder_is_kept(tmp_path: Path) -> None:
    ranks = {"m.a": 2}
    for name in ("one", "two"):
        write_adapter(tmp_path / name, tensors(ranks), card(ranks), dtype="float16")
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
    with pytest.raises(FileExistsError):
        write_adapter(tmp_path / "one", tensors(ranks), card(ranks))
    write_adapter(tmp_path / "one", tensors(ranks), card(ranks), overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_tensors_that_do_not_fit_are_named_and_nothing_is_left_behind(tmp_path: Path) -> None:
    ranks = {"m.a": 2}
    made = tensors(ranks)
    nan = {**made, "m.a.lora_b": made["m.a.lora_b"] * np.float32("nan")}
    cases = [
        ({"m.a.lora_a": made["m.a.lora_a"]}, "m.a.lora_b: missing"),
        ({**made, "m.z.lora_a": made["m.a.lora_a"]}, "m.z.lora_a: without a rank"),
        (tensors({"m.a": 3}), r"m.a.lora_a: rank .*expected 2, found 3"),
        (nan, "m.a.lora_b: holds NaN"),
    ]
    for bad, message in cases:
        with pytest.raises(AdapterError, match=message):
            write_adapter(tmp_path / "adapter", bad, card(ranks))
    assert list(tmp_path.iterdir()) == []


def test_reading_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"FILE_MISSING: optiq_lora_config\.json"):
        read_lora_config(tmp_path)
    (tmp_path / "optiq_lora_config.json").write_text('{"base_model": 1}')
    with pytest.raises(AdapterError, match="BAD_CONFIG"):
        read_lora_config(tmp_path)
    newer = msgspec.to_builtins(card({"a": 1})) | {"format_version": 2}
    (tmp_path / "optiq_lora_config.json").write_text(json.dumps(newer))
    with pytest.raises(AdapterError, match="newer Optiq"):
        read_lora_config(tmp_path)


def test_the_schema_beside_the_writer_is_the_writers() -> None:
    assert SCHEMA_PATH.read_bytes() == json_schema()
