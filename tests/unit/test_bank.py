"""The bank on a tiny random model: every kind and rank in one batch equals the same row alone."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models import llama
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear

from optiq_core.adapters.bank import BASE, AdapterBank, active
from optiq_core.adapters.mount import AdapterActivation, mount_adapter_on_model
from optiq_core.adapters.tensors import DeltaTensors, base_weight
from tests.unit.tiny import tiny_model, write_mlx_adapter

TOLERANCE = 2e-5


def delta(rank: int, dims: tuple[int, int], seed: int, *, dora: bool = False) -> DeltaTensors:
    """A random delta of visible size."""
    rng = np.random.default_rng(seed)
    return DeltaTensors(
        mx.array(rng.normal(size=(dims[0], rank)).astype(np.float32) * 0.3),
        mx.array(rng.normal(size=(rank, dims[1])).astype(np.float32) * 0.3),
        mx.array(rng.normal(size=dims[1]).astype(np.float32) * 0.2) if dora else None,
    )


def load_random(bank: AdapterBank, key: str, rank: int, seed: int, *, dora: bool = False, targets: str = "") -> None:
    bank.load(
        key,
        {
            path: delta(rank, dims, seed + i, dora=dora)
            for i, (path, dims) in enumerate(bank.modules.items())
            if targets in path and "layers" in path
        },
    )


def logits(model: llama.Model, tokens: mx.array, bank: AdapterBank, keys: list[str], factors: list[float]) -> mx.array:
    rows = bank.rows([bank.handle(k) if k else BASE for k in keys], factors)
    token = active.set(rows)
    try:
        out = model(tokens)
        mx.eval(out)
        return out
    finally:
        active.reset(token)


def test_mixed_rows_equal_rows_alone() -> None:
    model = tiny_model()
    bank = AdapterBank(model)
    ranks = [1, 2, 3, 4, 8, 16, 33]
    for i, rank in enumerate(ranks):
        load_random(bank, f"r{rank}", rank, i * 100, dora=i % 3 == 2, targets="q_proj" if i % 2 else "")
    keys = ["", *[f"r{r}" for r in ranks]]
    factors = [1.0, 1.0, 0.5, 1.0, 2.0, 1.0, 1.0, 0.25]
    tokens = mx.array(np.random.default_rng(0).integers(0, 64, (len(keys), 9)))
    mixed = logits(model, tokens, bank, keys, factors)
    for i, key in enumerate(keys):
        alone = logits(model, tokens[i : i + 1], bank, [key], [factors[i]])
        assert mx.abs(mixed[i] - alone[0]).max().item() < TOLERANCE, key
    differs = mx.abs(mixed[1:] - model(tokens)[1:]).max(axis=(1, 2))
    assert (differs > 1e-2).all().item()


def test_base_rows_and_factor_zero_equal_the_base_bit_for_bit() -> None:
    model = tiny_model()
    tokens = mx.array([[1, 2, 3, 4], [4, 3, 2, 1]])
    plain = model(tokens)
    bank = AdapterBank(model)
    load_random(bank, "a", 8, 1, dora=True)
    mixed = logits(model, tokens, bank, ["", "a"], [1.0, 1.0])
    assert mx.array_equal(mixed[0], plain[0]).item()
    assert not mx.array_equal(mixed[1], plain[1]).item()
    zero = logits(model, tokens, bank, ["a", "a"], [0.0, 1.0])
    assert mx.array_equal(zero[0], plain[0]).item()
    assert mx.array_equal(logits(model, tokens, bank, ["", ""], [1.0, 1.0]), plain).item()


def test_growing_the_bank_and_its_ranks_changes_no_loaded_adapter() -> None:
    model = tiny_model()
    bank = AdapterBank(model)
    tokens = mx.array([[5, 6, 7]])
    load_random(bank, "first", 2, 7)
    before = logits(model, tokens, bank, ["first"], [1.0])
    for i in range(9):
        load_random(bank, f"more{i}", 2 ** (i % 6), 1000 + i, dora=i == 4)
    after = logits(model, tokens, bank, ["first"], [1.0])
    assert mx.abs(before - after).max().item() < TOLERANCE


def test_a_recycled_slot_never_serves_an_old_row() -> None:
    bank = AdapterBank(tiny_model())
    load_random(bank, "old", 4, 1)
    stale = bank.handle("old")
    bank.unload("old")
    with pytest.raises(LookupError, match="recycled"):
        bank.rows([stale], [1.0])
    load_random(bank, "new", 4, 2)
    assert bank.handle("new").slot == stale.slot
    with pytest.raises(LookupError, match="recycled"):
        bank.rows([stale], [1.0])


def test_a_recycled_slot_is_clean_in_modules_that_the_new_adapter_does_not_touch() -> None:
    model = tiny_model()
    bank = AdapterBank(model)
    tokens = mx.array([[9, 8, 7, 6]])
    load_random(bank, "q", 4, 50, targets="q_proj")
    expected = logits(model, tokens, bank, ["q"], [1.0])
    bank.unload("q")
    load_random(bank, "wide", 8, 60, dora=True)
    bank.unload("wide")
    load_random(bank, "q", 4, 50, targets="q_proj")
    assert mx.abs(logits(model, tokens, bank, ["q"], [1.0]) - expected).max().item() < TOLERANCE


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("quantized", [False, True])
def test_a_mounted_folder_equals_mlx_lms_own_layer(tmp_path: Path, dora: bool, quantized: bool) -> None:
    model = tiny_model()
    if quantized:
        nn.quantize(model, group_size=32, bits=4)
    folder = write_mlx_adapter(tmp_path / "a", model, rank=4, scale=3.0, seed=5, dora=dora)
    tokens = mx.array([[1, 2, 3, 4, 5]])
    reference = tiny_model()
    if quantized:
        nn.quantize(reference, group_size=32, bits=4)
    weights = mx.load(str(folder / "adapters.safetensors"))
    for i, layer in enumerate(reference.layers):
        for name in ("q_proj", "v_proj"):
            kind = DoRALinear if dora else LoRALinear
            wrapped = kind.from_base(layer.self_attn[name], r=4, scale=3.0)
            prefix = f"model.layers.{i}.self_attn.{name}"
            wrapped.lora_a, wrapped.lora_b = weights[f"{prefix}.lora_a"], weights[f"{prefix}.lora_b"]
            if dora:
                wrapped.m = weights[f"{prefix}.m"]
            setattr(layer.self_attn, name, wrapped)
    mount_adapter_on_model(model, "agent", folder)
    with AdapterActivation("agent"):
        ours = model(tokens)
    assert mx.abs(ours - reference(tokens)).max().item() < 1e-4
    assert mx.abs(model(tokens) - ours).max().item() > 1e-3


def test_activation_refuses_a_name_that_is_not_mounted() -> None:
    with pytest.raises(KeyError, match="nobody"):
        AdapterActivation("nobody")


def test_a_blend_adds_the_weighted_sum_of_its_parts() -> None:
    model = tiny_model()
    bank = AdapterBank(model)
    shapes = [
        ("lora", 3, False, "q_proj"),
        ("dora", 5, True, ""),
        ("wide", 33, False, "v_proj"),
        ("dora2", 2, True, ""),
    ]
    for i, (key, rank, dora, targets) in enumerate(shapes):
        load_random(bank, key, rank, 100 * i, dora=dora, targets=targets)
    parts = [("lora", 0.5), ("dora", -0.25), ("wide", 1.5), ("dora2", 0.75)]
    blend = bank.blend(parts)
    module = bank._banked["model.layers.1.self_attn.v_proj"]
    x = mx.array(np.random.default_rng(0).normal(size=(1, 3, 64)).astype(np.float32))

    def added(key: str) -> mx.array:
        token = active.set(bank.rows([bank.handle(key)], [1.0]))
        try:
            return module(x) - module.base(x)
        finally:
            active.reset(token)

    expected = sum((w * added(k) for k, w in parts), mx.zeros((1, 3, 32)))
    assert mx.abs(added(blend) - expected).max().item() < TOLERANCE
    assert mx.abs(expected).max().item() > 1


def test_a_blend_is_one_entry_for_any_order_of_its_parts_and_outlives_them() -> None:
    model = tiny_model()
    bank = AdapterBank(model)
    tokens = mx.array([[3, 1, 2]])
    load_random(bank, "a", 4, 1)
    load_random(bank, "b", 8, 2, dora=True)
    blend = bank.blend([("a", 0.5), ("b", 0.25)])
    assert bank.blend([("b", 0.125), ("a", 0.5), ("b", 0.125)]) == blend
    assert bank.blend([("a", 0.5), ("b", 0.5)]) != blend
    assert bank.parts_of(blend) == (("a", 0.5), ("b", 0.25))
    assert bank.parts_of("a") == ()
    assert bank.bytes_of(blend) == bank.bytes_of("a") + bank.bytes_of("b")
    before = logits(model, tokens, bank, [blend], [1.0])
    bank.unload("a")
    bank.unload("b")
    load_random(bank, "c", 16, 3)
    load_random(bank, "d", 16, 4)
    assert mx.array_equal(logits(model, tokens, bank, [blend], [1.0]), before).item()


def test_a_blend_of_one_part_equals_its_factor_and_of_none_the_base() -> None:
    model = tiny_model()
    bank = AdapterBank(model)
    tokens = mx.array([[3, 1, 2]])
    plain = model(tokens)
    load_random(bank, "a", 4, 1, dora=True)
    half = logits(model, tokens, bank, [bank.blend([("a", 0.5)])], [1.0])
    assert mx.abs(half - logits(model, tokens, bank, ["a"], [0.5])).max().item() < TOLERANCE
    assert mx.array_equal(logits(model, tokens, bank, [bank.blend([("a", 0.0)])], [1.0]), plain).item()
    with pytest.raises(KeyError):
        bank.blend([("a", 0.5), ("unknown", 0.5)])
    with pytest.raises(ValueError, match="finite"):
        bank.blend([("a", float("nan"))])
    with pytest.raises(ValueError, match="parts"):
        bank.blend([])


@pytest.mark.parametrize(
    ("bits", "mode"), [(2, "affine"), (3, "affine"), (5, "affine"), (6, "affine"), (8, "affine"), (4, "mxfp4")]
)
def test_dora_on_any_bit_width_equals_dora_on_the_dequantized_base(tmp_path: Path, bits: int, mode: str) -> None:
    model, reference = tiny_model(), tiny_model()
    nn.quantize(model, group_size=32, bits=bits, mode=mode)
    folder = write_mlx_adapter(tmp_path / "a", model, rank=4, scale=3.0, seed=5, dora=True)
    quantized = dict(model.named_modules())
    for path, module in reference.named_modules():
        if isinstance(module, nn.Linear):
            module.weight = base_weight(quantized[path])
    reference.model.embed_tokens = model.model.embed_tokens
    tokens = mx.array([[1, 2, 3, 4, 5]])
    mount_adapter_on_model(reference, "dense", folder)
    with AdapterActivation("dense", reference):
        expected = reference(tokens)
    mount_adapter_on_model(model, "agent", folder)
    with AdapterActivation("agent"):
        ours = model(tokens)
    assert mx.abs(ours - expected).max().item() < 1e-3
    assert mx.abs(model(tokens) - ours).max().item() > 1e-2
