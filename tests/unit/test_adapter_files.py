"""Export, merge and fuse: the same function in another form, measured on the tiny model's logits."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from optiq_core.adapters.export import ExportFormat, export_adapter
from optiq_core.adapters.format import read_manifest
from optiq_core.adapters.fuse import fuse_adapter
from optiq_core.adapters.merge import merge_adapters
from optiq_core.adapters.mount import AdapterActivation, bank_of, mount_adapter_on_model
from optiq_core.engine.adapter_probe import probe_adapters
from optiq_core.errors import AdapterError
from tests.unit.test_adapter_format import mlx_folder
from tests.unit.tiny import save_tiny_base, tiny_model, write_mlx_adapter

TOKENS = [[1, 5, 9, 13, 2, 7], [3, 3, 8, 1, 60, 4]]
TOLERANCE = 2e-4


def logits(folder: Path) -> np.ndarray:
    model = tiny_model()
    mount_adapter_on_model(model, "a", folder)
    with AdapterActivation("a"):
        return np.array(model(mx.array(TOKENS)))


def plain() -> np.ndarray:
    return np.array(tiny_model()(mx.array(TOKENS)))


@pytest.mark.parametrize("form", ["mlx-lm", "peft"])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_an_export_has_the_same_function_and_so_has_its_export_back(
    tmp_path: Path, form: ExportFormat, dora: bool
) -> None:
    source = write_mlx_adapter(tmp_path / "source", tiny_model(), dora=dora, rank=3)
    expected = logits(source)
    assert np.abs(expected - plain()).max() > 0.01
    export_adapter(source, tmp_path / "out", form)
    assert read_manifest(tmp_path / "out").format == form
    assert np.abs(logits(tmp_path / "out") - expected).max() < TOLERANCE
    export_adapter(tmp_path / "out", tmp_path / "back", "mlx-lm")
    assert np.abs(logits(tmp_path / "back") - expected).max() < TOLERANCE
    with pytest.raises(FileExistsError):
        export_adapter(source, tmp_path / "out", form)


def test_merged_adapters_add_their_weighted_sum_whatever_their_ranks(tmp_path: Path) -> None:
    model = tiny_model()
    one = write_mlx_adapter(tmp_path / "one", model, rank=2, seed=1, scale=4.0)
    two = write_mlx_adapter(tmp_path / "two", model, rank=5, seed=2, scale=7.0, targets=("q_proj", "down_proj"))
    config = merge_adapters([(one, 0.75), (two, -0.5)], tmp_path / "both")
    assert sorted(set(config.ranks.values())) == [2, 5, 7]
    bank = bank_of(model)
    for name, folder in (("one", one), ("two", two)):
        mount_adapter_on_model(model, name, folder)
    blend = bank.blend([("one", 0.75), ("two", -0.5)])
    with AdapterActivation(blend):
        expected = np.array(model(mx.array(TOKENS)))
    assert np.abs(logits(tmp_path / "both") - expected).max() < TOLERANCE
    manifest = read_manifest(tmp_path / "both")
    assert (manifest.min_rank, manifest.max_rank, manifest.format) == (2, 7, "optiq")


def test_what_does_not_merge_says_why(tmp_path: Path) -> None:
    model = tiny_model()
    one = write_mlx_adapter(tmp_path / "one", model, rank=200)
    dora = write_mlx_adapter(tmp_path / "dora", model, dora=True)
    other = mlx_folder(tmp_path / "other")
    for parts, code in (
        ([(one, 1.0)], "BAD_MERGE"),
        ([(one, 1.0), (one, float("nan"))], "BAD_MERGE"),
        ([(one, 1.0), (one, 1.0)], "BAD_RANK"),
        ([(one, 1.0), (dora, 1.0)], "UNSUPPORTED_KIND"),
        ([(one, 1.0), (other, 1.0)], "SHAPE_MISMATCH"),
    ):
        with pytest.raises(AdapterError) as caught:
            merge_adapters(parts, tmp_path / "out")
        assert caught.value.code == code
    assert not (tmp_path / "out").exists()


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    """The tiny base in 4 bits."""
    mlx_lm.convert(
        str(save_tiny_base(tmp_path / "base")), str(tmp_path / "q4"), quantize=True, q_bits=4, q_group_size=32
    )
    return tmp_path / "q4"


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_a_float_fuse_keeps_everything_and_a_quantized_one_says_what_is_lost(
    tmp_path: Path, quantized: Path, dora: bool
) -> None:
    model = mlx_lm.load(str(quantized))[0]
    source = write_mlx_adapter(tmp_path / "adapter", model, scale=1.0, dora=dora)
    mount_adapter_on_model(model, "a", source)
    with AdapterActivation("a"):
        expected = np.array(model(mx.array(TOKENS)))
    report = fuse_adapter(quantized, source, tmp_path / "float", keep_float=True)
    assert (report.modules, report.quantized, report.kept_cosine, report.warning) == (4, 0, 1.0, "")
    fused = mlx_lm.load(str(tmp_path / "float"))[0]
    assert np.abs(np.array(fused(mx.array(TOKENS))) - expected).max() < 0.02, "float16 weights"
    report = fuse_adapter(quantized, source, tmp_path / "again")
    assert report.quantized == 4 and 0 < report.worst_cosine <= report.kept_cosine < 1
    assert f"cosine {report.kept_cosine:.2f}" in report.warning and "0.02 at 0.001" in report.warning
    assert np.isfinite(np.array(mlx_lm.load(str(tmp_path / "again"))[0](mx.array(TOKENS)))).all()
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["quantization"]["bits"] == 4


def test_a_small_adapter_vanishes_in_four_bits(tmp_path: Path, quantized: Path) -> None:
    model = mlx_lm.load(str(quantized))[0]
    large = write_mlx_adapter(tmp_path / "large", model, scale=5.0)
    small = write_mlx_adapter(tmp_path / "small", model, scale=0.01)
    much, little = (fuse_adapter(quantized, a, tmp_path / f"out-{a.name}").kept_cosine for a in (large, small))
    assert much > 0.8
    assert little < 0.5


def test_the_probe_tells_an_adapter_without_effect(tmp_path: Path) -> None:
    model = tiny_model()
    for name, scale in (("none", 0.0), ("some", 1.0)):
        mount_adapter_on_model(model, name, write_mlx_adapter(tmp_path / name, tiny_model(), scale=scale))
    found = probe_adapters(model, bank_of(model), ["none", "absent", "some"])
    assert set(found) == {"none", "some"}
    assert found["none"] == 0 and found["some"] > 0
    assert probe_adapters(model, bank_of(model), ["absent"]) == {}
    with pytest.raises(AdapterError) as caught:
        mount_adapter_on_model(model, "wild", write_mlx_adapter(tmp_path / "wild", tiny_model(), scale=1e40))
    assert caught.value.code == "NOT_FINITE", "rows of one batch share products"
