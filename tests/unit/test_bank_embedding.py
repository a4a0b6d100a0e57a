"""Adapters on the embedding: mlx-lm's change a tied head too, PEFT's only what tokens are looked up as."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models import llama
from mlx_lm.tuner.lora import LoRAEmbedding
from safetensors.numpy import save_file

from optiq_core.adapters.bank import BASE, AdapterBank, active
from optiq_core.adapters.export import export_adapter
from optiq_core.adapters.format import read_manifest, validate_against_base
from optiq_core.adapters.manifest import ModuleShape
from optiq_core.adapters.mount import bank_of
from optiq_core.adapters.tensors import load_tensors
from optiq_core.engine.cpu import prepare_for_cpu
from optiq_core.errors import AdapterError
from tests.unit.tiny import tiny_model

PATH = "model.embed_tokens"
TOKENS = mx.array([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [9, 9, 8, 8, 7], [6, 1, 6, 2, 6]])
RANKS = {"mlx3": 3, "mlx20": 20, "peft5": 5}
KEYS = ["", *RANKS]


def base(layout: str, *, tied: bool) -> llama.Model:
    model = tiny_model(tied=tied)
    if layout == "quantized":
        nn.quantize(model, group_size=32, bits=4)
    if layout == "blocked":
        prepare_for_cpu(model)
    return model


def matrices(rank: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rank)
    return rng.normal(size=(64, rank)).astype(np.float32) * 0.1, rng.normal(size=(rank, 64)).astype(np.float32) * 0.1


def write(folder: Path, name: str, *, copy: np.ndarray | None = None, dora: bool = False) -> Path:
    """An adapter of scale 2 in the format that its name begins with."""
    folder.mkdir(parents=True)
    rank = RANKS[name]
    a, b = matrices(rank)
    if name.startswith("mlx"):
        tensors = {f"{PATH}.lora_a": a, f"{PATH}.lora_b": b}
        if dora:
            tensors[f"{PATH}.m"] = np.ones(64, np.float32)
        kind = "dora" if dora else "lora"
        config = {"fine_tune_type": kind, "lora_parameters": {"rank": rank, "scale": 2.0}}
        save_file(tensors, folder / "adapters.safetensors")
    else:
        full = f"base_model.model.{PATH}"
        tensors = {f"{full}.lora_embedding_A": a.T.copy(), f"{full}.lora_embedding_B": b.T.copy()}
        if copy is not None:
            tensors[f"{full}.base_layer.weight"] = copy
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "use_dora": dora}
        save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def load(bank: AdapterBank, folder: Path, key: str) -> None:
    manifest = read_manifest(folder)
    validate_against_base(manifest, bank.modules)
    bank.load(key, load_tensors(folder, manifest, bank.targets, bank.dtype))


def run(model: llama.Model, keys: list[str], factors: list[float], tokens: mx.array) -> mx.array:
    bank = bank_of(model)
    token = active.set(bank.rows([bank.handle(key) if key else BASE for key in keys], factors))
    try:
        return model(tokens)
    finally:
        active.reset(token)


def reference(layout: str, name: str, *, tied: bool, factor: float = 1.0) -> mx.array:
    """mlx-lm's own layer; for PEFT's adapters, with the base's head."""
    model = base("quantized" if layout == "quantized" else "plain", tied=tied)
    embedding = model.model.embed_tokens
    layer = LoRAEmbedding.from_base(embedding, r=RANKS[name], scale=2.0 * factor)
    a, b = matrices(RANKS[name])
    layer.lora_a, layer.lora_b = mx.array(a), mx.array(b)
    model.model.embed_tokens = layer
    if name.startswith("mlx") or not tied:
        return model(TOKENS)
    return embedding.as_linear(model.model(TOKENS))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layout", ["plain", "quantized", "blocked"])
def test_rows_with_adapters_on_the_embedding_equal_mlx_lms_layer(tmp_path: Path, layout: str, tied: bool) -> None:
    model = base(layout, tied=tied)
    plain = model(TOKENS)
    for name in RANKS:
        load(bank_of(model), write(tmp_path / name, name), name)
    assert mx.array_equal(model(TOKENS), plain).item()
    factors = [1.0, 1.0, 0.5, 1.0]
    mixed = run(model, KEYS, factors, TOKENS)
    assert mx.array_equal(mixed[0], plain[0]).item()
    assert mx.array_equal(run(model, KEYS, [1.0, 0.0, 1.0, 0.0], TOKENS)[1], plain[1]).item()
    for row, name in enumerate(KEYS):
        alone = run(model, [name], [factors[row]], TOKENS[row : row + 1])[0]
        assert mx.abs(mixed[row] - alone).max().item() < 2e-5
        if name:
            expected = reference(layout, name, tied=tied, factor=factors[row])[row]
            assert mx.abs(mixed[row] - expected).max().item() < 1e-4
            assert mx.abs(mixed[row] - plain[row]).max().item() > 1e-2


def test_a_blend_of_both_formats_adds_what_its_parts_add(tmp_path: Path) -> None:
    model = base("plain", tied=True)
    bank = bank_of(model)
    for name in RANKS:
        load(bank, write(tmp_path / name, name), name)
    blend = bank.blend([("mlx3", 0.5), ("peft5", -0.25)])
    layer = model.model.embed_tokens
    x = mx.array(np.random.default_rng(1).normal(size=(1, 3, 64)).astype(np.float32))

    def added(key: str) -> tuple[mx.array, mx.array]:
        token = active.set(bank.rows([bank.handle(key)], [1.0]))
        try:
            return layer(TOKENS[:1]) - layer.base(TOKENS[:1]), layer.as_linear(x) - layer.base.as_linear(x)
        finally:
            active.reset(token)

    ours, first, second = added(blend), added("mlx3"), added("peft5")
    for i in (0, 1):
        assert mx.abs(ours[i] - (0.5 * first[i] - 0.25 * second[i])).max().item() < 2e-5
    assert mx.abs(second[1]).max().item() == 0


def test_pefts_copy_of_the_bases_weight_must_be_the_bases(tmp_path: Path) -> None:
    model = base("plain", tied=True)
    weight = np.array(model.model.embed_tokens.weight)
    load(bank_of(model), write(tmp_path / "same", "peft5", copy=weight), "same")
    for name, copy, code in (
        ("other", weight + 0.1 * weight.std(), "BASE_CHANGED"),
        ("resized", weight[:32].copy(), "SHAPE_MISMATCH"),
    ):
        with pytest.raises(AdapterError) as caught:
            load(bank_of(model), write(tmp_path / name, "peft5", copy=copy), name)
        assert (caught.value.code, caught.value.tensor) == (code, f"base_model.model.{PATH}.base_layer.weight")


def test_what_an_embedding_cannot_carry_is_refused_with_the_reason(tmp_path: Path) -> None:
    modules = bank_of(base("plain", tied=True)).modules
    for name in ("mlx3", "peft5"):
        with pytest.raises(AdapterError, match="DoRA is served on linear modules only"):
            validate_against_base(read_manifest(write(tmp_path / name, name, dora=True)), modules)
    folder = write(tmp_path / "plain", "peft5")
    with pytest.raises(AdapterError, match="module is linear"):
        validate_against_base(read_manifest(folder), {PATH: ModuleShape(64, 64)})


def test_an_adapter_of_an_embedding_is_not_rewritten_as_one_of_another_function(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="leave a tied head alone"):
        export_adapter(write(tmp_path / "mlx3", "mlx3"), tmp_path / "peft", "peft")
    with pytest.raises(AdapterError, match="only adapters of plain linear modules"):
        export_adapter(write(tmp_path / "peft5", "peft5"), tmp_path / "mlx", "mlx-lm")
