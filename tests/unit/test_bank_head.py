"""Adapters on a head of its own: one more linear module, on every layout of the base."""

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
from optiq_core.adapters.format import read_manifest
from optiq_core.adapters.mount import bank_of
from optiq_core.adapters.tensors import load_tensors
from optiq_core.base.blocked import BlockedLinear
from optiq_core.engine.cpu import prepare_for_cpu
from tests.unit.tiny import tiny_model, write_mlx_adapter

TOKENS = mx.array([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [9, 9, 8, 8, 7]])


def untied(layout: str) -> llama.Model:
    model = tiny_model(tied=False)
    if layout == "quantized":
        nn.quantize(model, group_size=32, bits=4)
    if layout == "blocked":
        prepare_for_cpu(model)
        assert isinstance(model.lm_head, BlockedLinear)
    return model


def run(model: llama.Model, bank: AdapterBank, keys: list[str], tokens: mx.array) -> mx.array:
    token = active.set(bank.rows([bank.handle(key) if key else BASE for key in keys], [1.0] * len(keys)))
    try:
        return model(tokens)
    finally:
        active.reset(token)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("layout", ["plain", "quantized", "blocked"])
def test_rows_with_adapters_on_the_head_equal_mlx_lms_layer(tmp_path: Path, layout: str, dora: bool) -> None:
    model = untied(layout)
    bank = bank_of(model)
    plain = model(TOKENS)
    expected = [plain[0]]
    for seed in (1, 2):
        folder = write_mlx_adapter(
            tmp_path / str(seed),
            untied(layout),
            rank=3 * seed,
            scale=3.0,
            seed=seed,
            dora=dora,
            targets=("lm_head",),
            layers="",
        )
        manifest = read_manifest(folder)
        bank.load(str(seed), load_tensors(folder, manifest, bank.linears, bank.dtype))
        reference = untied("quantized" if layout == "quantized" else "plain")
        kind = DoRALinear if dora else LoRALinear
        head = kind.from_base(reference.lm_head, r=3 * seed, scale=3.0)
        head.load_weights(
            [(name.removeprefix("lm_head."), w) for name, w in mx.load(str(folder / manifest.weights_file)).items()],
            strict=False,
        )
        reference.lm_head = head
        expected.append(reference(TOKENS)[seed])
    mixed = run(model, bank, ["", "1", "2"], TOKENS)
    assert mx.array_equal(mixed[0], plain[0]).item()
    for row, key in enumerate(["", "1", "2"]):
        assert mx.abs(mixed[row] - expected[row]).max().item() < 1e-4
        alone = run(model, bank, [key], TOKENS[row : row + 1])
        assert mx.abs(mixed[row] - alone[0]).max().item() < 2e-5
    assert np.array(mx.abs(mixed[1:] - plain[1:]).max(axis=(1, 2))).min() > 1e-2
