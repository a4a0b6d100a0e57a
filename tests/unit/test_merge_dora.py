"""Merging DoRA adapters: what the merged one adds is exactly the weighted sum of what its parts add."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from optiq_core.adapters.bank import adaptable_modules
from optiq_core.adapters.format import read_manifest
from optiq_core.adapters.merge import merge_adapters
from optiq_core.adapters.merge_dora import merge_dora
from optiq_core.adapters.tensors import DeltaTensors, combine, load_tensors
from optiq_core.errors import AdapterError
from tests.unit.tiny import tiny_model, write_mlx_adapter

Deltas = dict[str, DeltaTensors]


def added(folder: Path, modules: dict[str, object]) -> Deltas:
    return load_tensors(folder, read_manifest(folder), modules, mx.float32)  # type: ignore[arg-type]


def same(one: Deltas, other: Deltas) -> None:
    assert one.keys() == other.keys()
    for path, delta in one.items():
        wanted = other[path]
        np.testing.assert_allclose(delta.a @ delta.b, wanted.a @ wanted.b, rtol=1e-4, atol=1e-5, err_msg=path)
        gain = wanted.gain if wanted.gain is not None else mx.zeros(wanted.b.shape[1])
        assert delta.gain is not None
        np.testing.assert_allclose(delta.gain, gain, rtol=1e-4, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("weights", [(0.5, 0.5, 1.0), (2.0, -0.75, 0.25), (-3.0, 1.0, 1.0)])
def test_the_sum_of_dora_and_lora_is_a_dora_adapter(tmp_path: Path, weights: tuple[float, float, float]) -> None:
    model = tiny_model()
    modules = adaptable_modules(model)
    folders = [
        write_mlx_adapter(tmp_path / "one", model, dora=True, seed=1),
        write_mlx_adapter(tmp_path / "two", model, dora=True, seed=2, rank=8, scale=3.0, targets=("q_proj", "o_proj")),
        write_mlx_adapter(tmp_path / "lora", model, seed=3, rank=2, targets=("q_proj", "up_proj")),
    ]
    parts = list(zip(folders, weights, strict=True))
    config = merge_dora(parts, modules, tmp_path / "merged")
    assert config.method == "dora" and config.ranks["model.layers.0.self_attn.q_proj"] == 4 + 8 + 2
    wanted = combine([(added(folder, modules), weight) for folder, weight in parts])
    same(added(tmp_path / "merged", modules), wanted)


def test_a_gain_that_cancels_is_refused_with_its_row(tmp_path: Path) -> None:
    model = tiny_model()
    modules = adaptable_modules(model)
    folder = write_mlx_adapter(tmp_path / "one", model, dora=True, seed=1)
    other = write_mlx_adapter(tmp_path / "two", model, seed=2)
    path = "model.layers.1.self_attn.v_proj"
    tensors = load_file(folder / "adapters.safetensors")
    # A magnitude of 0 takes the base's row away: g = 0, and the whole sum's gain is 1 + 1 (0 - 1).
    tensors[f"{path}.m"][7] = 0.0
    save_file(tensors, folder / "adapters.safetensors")
    with pytest.raises(AdapterError, match="output row 7") as caught:
        merge_dora([(folder, 1.0), (other, 1.0)], modules, tmp_path / "merged")
    assert (caught.value.code, caught.value.tensor) == ("MERGE_SINGULAR", path)
    assert not (tmp_path / "merged").exists()
    merge_dora([(folder, 0.5), (other, 1.0)], modules, tmp_path / "merged")


def test_without_the_base_dora_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    folder = write_mlx_adapter(tmp_path / "one", model, dora=True)
    with pytest.raises(AdapterError, match="depends on the base"):
        merge_adapters([(folder, 1.0), (folder, 1.0)], tmp_path / "merged")
    for parts in ([(folder, 1.0)], [(folder, float("nan")), (folder, 1.0)]):
        with pytest.raises(AdapterError) as caught:
            merge_dora(parts, adaptable_modules(model), tmp_path / "merged")
        assert caught.value.code == "BAD_MERGE"
