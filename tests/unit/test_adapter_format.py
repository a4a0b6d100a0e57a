"""Adapter folders: what is read from headers, and what is refused with file, tensor, expected and found."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from optiq_core.adapters.format import digest_folder, read_manifest, validate_against_base
from optiq_core.adapters.manifest import ModuleShape
from optiq_core.errors import AdapterError

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"
BASE = {Q: ModuleShape(16, 16), V: ModuleShape(16, 8)}


def mlx_folder(root: Path, *, config: dict[str, Any] | None = None, optiq: dict[str, Any] | None = None) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            f"{Q}.lora_a": np.ones((16, 4), np.float32),
            f"{Q}.lora_b": np.ones((4, 16), np.float32),
            f"{V}.lora_a": np.ones((16, 4), np.float32),
            f"{V}.lora_b": np.ones((4, 8), np.float32),
        },
        root / "adapters.safetensors",
    )
    content = config or {
        "fine_tune_type": "lora",
        "num_layers": -1,
        "model": "some/base",
        "lora_parameters": {"rank": 4, "scale": 2.0, "dropout": 0.0},
    }
    (root / "adapter_config.json").write_text(json.dumps(content))
    if optiq is not None:
        (root / "optiq_lora_config.json").write_text(json.dumps(optiq))
    return root


def peft_folder(root: Path, **config: Any) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    prefix = "base_model.model."
    save_file(
        {
            f"{prefix}{Q}.lora_A.weight": np.ones((4, 16), np.float32),
            f"{prefix}{Q}.lora_B.weight": np.ones((16, 4), np.float32),
            f"{prefix}{V}.lora_A.weight": np.ones((2, 16), np.float32),
            f"{prefix}{V}.lora_B.weight": np.ones((8, 2), np.float32),
        },
        root / "adapter_model.safetensors",
    )
    content = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "x/y", **config}
    (root / "adapter_config.json").write_text(json.dumps(content))
    return root


def test_an_mlx_folder_is_described_from_its_header(tmp_path: Path) -> None:
    manifest = read_manifest(mlx_folder(tmp_path))
    assert (manifest.format, manifest.kind, manifest.base_model) == ("mlx-lm", "lora", "some/base")
    assert [(m.path, m.rank, m.scale, m.input_dims, m.output_dims) for m in manifest.modules] == [
        (Q, 4, 2.0, 16, 16),
        (V, 4, 2.0, 16, 8),
    ]
    assert manifest.targets == ("q_proj", "v_proj")
    assert manifest.parameter_count == 4 * 32 + 4 * 24
    validate_against_base(manifest, BASE)


def test_true_ranks_come_from_our_own_file(tmp_path: Path) -> None:
    manifest = read_manifest(mlx_folder(tmp_path, optiq={"ranks": {V: 2}}))
    assert manifest.format == "optiq"
    assert [m.rank for m in manifest.modules] == [4, 2]
    assert (manifest.min_rank, manifest.max_rank) == (2, 4)
    with pytest.raises(AdapterError) as caught:
        read_manifest(mlx_folder(tmp_path, optiq={"ranks": {V: 9}}))
    assert (caught.value.code, caught.value.tensor) == ("BAD_RANK", V)


def test_peft_scales_follow_patterns_and_rslora(tmp_path: Path) -> None:
    manifest = read_manifest(peft_folder(tmp_path, alpha_pattern={r"layers\.1\.self_attn\.v_proj": 3}))
    assert [(m.rank, m.scale, m.transposed) for m in manifest.modules] == [(4, 2.0, True), (2, 1.5, True)]
    rs = read_manifest(peft_folder(tmp_path, use_rslora=True))
    assert [m.scale for m in rs.modules] == [8 / 2, 8 / 2**0.5]
    validate_against_base(manifest, BASE)


def test_the_digest_ignores_formatting_and_sees_every_byte(tmp_path: Path) -> None:
    folder = mlx_folder(tmp_path / "a")
    digest = digest_folder(folder, read_manifest(folder))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(dict(reversed(config.items())), indent=4))
    assert digest_folder(folder, read_manifest(folder)) == digest
    config["lora_parameters"]["scale"] = 2.5
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert digest_folder(folder, read_manifest(folder)) != digest
    other = mlx_folder(tmp_path / "b")
    data = bytearray((other / "adapters.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "adapters.safetensors").write_bytes(data)
    assert digest_folder(other, read_manifest(other)) != digest


def bad_shape(folder: Path) -> None:
    save_file(
        {f"{Q}.lora_a": np.ones((16, 4), np.float32), f"{Q}.lora_b": np.ones((3, 16), np.float32)},
        folder / "adapters.safetensors",
    )


def missing_b(folder: Path) -> None:
    save_file({f"{Q}.lora_a": np.ones((16, 4), np.float32)}, folder / "adapters.safetensors")


def integers(folder: Path) -> None:
    save_file({f"{Q}.lora_a": np.ones((16, 4), np.int32)}, folder / "adapters.safetensors")


def stranger(folder: Path) -> None:
    save_file({"model.embed_tokens.weight": np.ones((16, 4), np.float32)}, folder / "adapters.safetensors")


def truncated(folder: Path) -> None:
    path = folder / "adapters.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def lying_header(folder: Path) -> None:
    path = folder / "adapters.safetensors"
    data = path.read_bytes()
    path.write_bytes((1 << 60).to_bytes(8, "little") + data[8:])


def link(folder: Path) -> None:
    path = folder / "adapters.safetensors"
    path.rename(folder / "elsewhere.safetensors")
    path.symlink_to(folder / "elsewhere.safetensors")


def hard_link(folder: Path) -> None:
    os.link(folder / "adapters.safetensors", folder / "second-name")


def pipe(folder: Path) -> None:
    (folder / "adapters.safetensors").unlink()
    os.mkfifo(folder / "adapters.safetensors")


def duplicate_key(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"fine_tune_type": "lora", "fine_tune_type": "full"}')


def full_fine_tune(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"fine_tune_type": "full"}')


def no_scale(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"lora_parameters": {"alpha": 16}}')


def nan_scale(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"lora_parameters": {"scale": NaN}}')


def absent(folder: Path) -> None:
    (folder / "adapters.safetensors").unlink()


def huge_rank(folder: Path) -> None:
    save_file(
        {f"{Q}.lora_a": np.ones((16, 257), np.float16), f"{Q}.lora_b": np.ones((257, 16), np.float16)},
        folder / "adapters.safetensors",
    )


def no_magnitude(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"fine_tune_type": "dora", "lora_parameters": {"scale": 1}}')


@pytest.mark.parametrize(
    ("damage", "code", "file", "tensor"),
    [
        (bad_shape, "SHAPE_MISMATCH", "adapters.safetensors", f"{Q}.lora_b"),
        (missing_b, "TENSOR_MISSING", "adapters.safetensors", f"{Q}.lora_b"),
        (integers, "BAD_DTYPE", "adapters.safetensors", f"{Q}.lora_a"),
        (stranger, "UNKNOWN_TENSOR", "adapters.safetensors", "model.embed_tokens.weight"),
        (truncated, "BAD_SAFETENSORS", "adapters.safetensors", ""),
        (lying_header, "BAD_SAFETENSORS", "adapters.safetensors", ""),
        (link, "LINK", "adapters.safetensors", ""),
        (hard_link, "LINK", "adapters.safetensors", ""),
        (pipe, "NOT_A_FILE", "adapters.safetensors", ""),
        (duplicate_key, "DUPLICATE_KEY", "adapter_config.json", "fine_tune_type"),
        (full_fine_tune, "UNSUPPORTED_KIND", "adapter_config.json", "fine_tune_type"),
        (no_scale, "BAD_CONFIG", "adapter_config.json", "lora_parameters.scale"),
        (nan_scale, "BAD_CONFIG", "adapter_config.json", "lora_parameters.scale"),
        (absent, "FILE_MISSING", "adapters.safetensors", ""),
        (huge_rank, "BAD_RANK", "adapters.safetensors", f"{Q}.lora_a"),
        (no_magnitude, "TENSOR_MISSING", "adapters.safetensors", f"{Q}.lora_a"),
    ],
)
def test_a_damaged_folder_is_refused_with_the_place(
    tmp_path: Path, damage: Callable[[Path], None], code: str, file: str, tensor: str
) -> None:
    folder = mlx_folder(tmp_path)
    damage(folder)
    with pytest.raises(AdapterError) as caught:
        read_manifest(folder)
    assert (caught.value.code, caught.value.file, caught.value.tensor) == (code, file, tensor)


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"peft_type": "IA3"}, "UNSUPPORTED_KIND"),
        ({"init_lora_weights": "pissa_niter_4"}, "BASE_CHANGED"),
        ({"init_lora_weights": "olora"}, "BASE_CHANGED"),
        ({"bias": "all"}, "UNSUPPORTED_KIND"),
        ({"lora_bias": True}, "UNSUPPORTED_KIND"),
        ({"layer_replication": [[0, 2]]}, "UNSUPPORTED_KIND"),
        ({"modules_to_save": ["lm_head"]}, "UNSUPPORTED_KIND"),
        ({"lora_alpha": "8"}, "BAD_CONFIG"),
        ({"alpha_pattern": {"(a+)+b": 4}}, "BAD_PATTERN"),
        ({"alpha_pattern": {"(": 4}}, "BAD_PATTERN"),
        ({"use_dora": True}, "TENSOR_MISSING"),
    ],
)
def test_peft_kinds_that_cannot_be_served_are_refused(tmp_path: Path, config: dict[str, Any], code: str) -> None:
    with pytest.raises(AdapterError) as caught:
        read_manifest(peft_folder(tmp_path, **config))
    assert caught.value.code == code


def test_another_base_is_named_with_both_shapes(tmp_path: Path) -> None:
    manifest = read_manifest(mlx_folder(tmp_path))
    with pytest.raises(AdapterError) as caught:
        validate_against_base(manifest, {**BASE, V: ModuleShape(16, 12)})
    assert (caught.value.code, caught.value.tensor) == ("SHAPE_MISMATCH", f"{V}.lora_b")
    assert (caught.value.expected, caught.value.found) == ("[4, 12]", "[4, 8]")
    with pytest.raises(AdapterError) as caught:
        validate_against_base(manifest, {Q: ModuleShape(16, 16)})
    assert (caught.value.code, caught.value.found) == ("UNKNOWN_MODULE", V)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_bytes_make_the_reader_raise_anything_else(tmp_path: Path, data: st.DataObject) -> None:
    folder = mlx_folder(tmp_path)
    name = data.draw(st.sampled_from(["adapter_config.json", "adapters.safetensors"]))
    content = bytearray((folder / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(content) - 1, 400)))
        content[at] = data.draw(st.integers(0, 255))
    (folder / name).write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        manifest = read_manifest(folder)
        digest_folder(folder, manifest)
        validate_against_base(manifest, BASE)
    except AdapterError as error:
        assert error.code
        assert error.file
