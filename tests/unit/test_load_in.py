"""Quantization at load time: values, fallbacks that are said, and bases that it is not for."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.utils import load_model

from optiq_core.base import LOAD_IN, LoadIn, ModuleBits, load_base
from optiq_core.base.load_in import quantize_at_load
from optiq_core.base.metadata import derive_metadata
from optiq_core.errors import BaseModelError
from tests.unit.quant_tiny import save_tiny

TOKENS = mx.array([[3, 1, 4, 1, 5, 9, 2, 6]])


@pytest.mark.parametrize("load_in", LOAD_IN)
def test_a_base_loaded_with_fewer_bits_computes_with_the_quantized_weights(tmp_path: Path, load_in: LoadIn) -> None:
    folder = save_tiny(tmp_path / "m", tied=False)
    base = load_base(folder, load_in=load_in)
    # The same with mlx alone; the tiny model's rows are 64 and 128 wide.
    stock, _ = load_model(folder)
    bits, mode = (4, "mxfp4") if load_in == "mxfp4" else (int(load_in[0]), "affine")

    def settings(path: str, module: nn.Module) -> dict[str, object] | bool:
        if not hasattr(module, "to_quantized"):
            return False
        group = 32 if mode == "mxfp4" else 128 if module.weight.shape[-1] % 128 == 0 else 64
        return {"group_size": group, "bits": bits, "mode": mode}

    nn.quantize(stock, class_predicate=settings)
    assert mx.abs(base.model(TOKENS) - stock(TOKENS)).max().item() < 2e-2
    assert mx.abs(base.model(TOKENS) - load_base(folder).model(TOKENS)).max().item() > 1e-4

    assert base.metadata.bits_of("lm_head") == bits
    down = base.metadata.modules["model.layers.0.mlp.down_proj"]
    assert down == ModuleBits(bits, 32 if mode == "mxfp4" else 128, mode)
    said = " ".join(base.profile.notes)
    assert ("in groups of 64" in said) == (mode == "affine")
    assert bits < base.bits_per_weight < bits + 1.2


def test_each_way_of_loading_is_another_base(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    digests = {load_base(folder, load_in=load_in).digest for load_in in LOAD_IN} | {load_base(folder).digest}
    assert len(digests) == len(LOAD_IN) + 1


def test_rows_that_no_group_divides_stay_in_float_and_it_is_said(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    model, _ = load_model(folder)
    model.layers[0].mlp.up_proj = nn.Linear(48, 16)
    metadata, notes = quantize_at_load(model, derive_metadata(folder), "8bit", folder)
    assert isinstance(model.layers[0].mlp.up_proj, nn.Linear)
    assert any("1 modules stay in float" in note for note in notes)
    assert metadata.modules["model.layers.1.mlp.up_proj"].bits == 8


def test_a_quantized_base_is_refused_with_its_bits(tmp_path: Path) -> None:
    from tests.unit.test_base import save_folder

    folder = save_folder(tmp_path / "m", quantize=True)
    with pytest.raises(BaseModelError, match=r"already quantized, .* bits per weight"):
        load_base(folder, load_in="4bit")
