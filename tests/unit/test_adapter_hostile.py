"""Folders that lie, and the list of what is refused: each with its code, file and tensor, before anything is loaded."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from optiq_core import errors
from optiq_core.adapters import files
from optiq_core.adapters.format import digest_folder, read_manifest, validate_against_base
from optiq_core.adapters.recorded_base import another_name, check_recorded_base, model_name
from optiq_core.errors import AdapterError
from tests.unit.test_adapter_format import BASE, Q, V, mlx_folder, peft_folder

WEIGHTS = "adapters.safetensors"


def accept(folder: Path) -> str:
    """Everything that is done to a dropped folder before its tensors are loaded; its digest."""
    manifest = read_manifest(folder)
    validate_against_base(manifest, BASE)
    return digest_folder(folder, manifest)


def refusal(folder: Path) -> AdapterError:
    with pytest.raises(AdapterError) as caught:
        accept(folder)
    return caught.value


def raw(folder: Path, header: str | bytes, body: bytes = b"") -> None:
    """Write a weights file byte by byte."""
    text = header.encode() if isinstance(header, str) else header
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + body)


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def tensors(**values: np.ndarray) -> dict[str, np.ndarray]:
    return {name.replace("__", "."): value for name, value in values.items()}


def pair(rank: int = 4, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    return {f"{Q}.lora_a": np.ones((16, rank), dtype), f"{Q}.lora_b": np.ones((rank, 16), dtype)}


def save(folder: Path, content: dict[str, np.ndarray]) -> None:
    save_file(content, folder / WEIGHTS)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_tensor_that_is_not_finite_is_named(tmp_path: Path, value: float, dtype: Any) -> None:
    folder = mlx_folder(tmp_path)
    content = pair(dtype=dtype)
    content[f"{Q}.lora_b"][3, 15] = value
    save(folder, content)
    error = refusal(folder)
    assert (error.code, error.file, error.tensor) == ("NOT_FINITE", WEIGHTS, f"{Q}.lora_b")


@given(bits=st.integers(0, 0xFFFF))
@settings(max_examples=300, deadline=None)
def test_bfloat16_is_looked_at_bit_by_bit(bits: int) -> None:
    value = np.array([bits << 16], np.uint32).view(np.float32)[0]
    assert files._finite(struct.pack("<H", bits), "BF16") == bool(np.isfinite(value))


def duplicate_tensor(folder: Path) -> None:
    one = json.dumps(entry([1, 1], 0, 4))
    raw(folder, f'{{"{Q}.lora_a": {one}, "{Q}.lora_a": {one}}}', b"\0" * 4)


def huge_header(folder: Path) -> None:
    raw(folder, b"{" + b" " * files.MAX_HEADER_BYTES + b"}")


def header_beyond_file(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 1000) + b"{}")


def header_not_json(folder: Path) -> None:
    raw(folder, b"\x80\x04\x95pickle")


def deep_header(folder: Path) -> None:
    raw(folder, '{"a":' * 50_000 + "1" + "}" * 50_000)


def overlapping(folder: Path) -> None:
    header = {f"{Q}.lora_a": entry([16, 4], 0, 256), f"{Q}.lora_b": entry([4, 16], 0, 256)}
    raw(folder, json.dumps(header), b"\0" * 256)


def absurd_shape(folder: Path) -> None:
    raw(folder, json.dumps({f"{Q}.lora_a": entry([1 << 40, 1 << 40], 0, 4)}), b"\0" * 4)


def negative_shape(folder: Path) -> None:
    raw(folder, json.dumps({f"{Q}.lora_a": entry([-16, 4], 0, 256)}), b"\0" * 256)


def trailing_bytes(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes() + b"more")


def empty_file(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


def no_tensors(folder: Path) -> None:
    raw(folder, "{}")


def dotted_name(folder: Path) -> None:
    save(folder, {"../../etc.lora_a": np.ones((4, 4), np.float32)})


def control_name(folder: Path) -> None:
    save(folder, {"model\n\x1b[31m.lora_a": np.ones((4, 4), np.float32)})


def long_name(folder: Path) -> None:
    save(folder, {"x" * 5000 + ".lora_a": np.ones((4, 4), np.float32)})


def rank_zero(folder: Path) -> None:
    save(folder, pair(rank=0))


def absurd_rank(folder: Path) -> None:
    save(folder, pair(rank=300, dtype=np.float16))


def three_dimensions(folder: Path) -> None:
    save(folder, {f"{Q}.lora_a": np.ones((2, 16, 4), np.float32), f"{Q}.lora_b": np.ones((2, 4, 16), np.float32)})


def doubles(folder: Path) -> None:
    save(folder, pair(dtype=np.float64))


def unknown_target(folder: Path) -> None:
    save(folder, {k.replace("q_proj", "x_proj"): v for k, v in pair().items()})


def other_width(folder: Path) -> None:
    save(folder, {f"{Q}.lora_a": np.ones((24, 4), np.float32), f"{Q}.lora_b": np.ones((4, 16), np.float32)})


def device_node(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    try:
        os.mknod(folder / WEIGHTS, 0o666 | 0o020000, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root makes device files")


def socket_file(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(folder)  # a socket's path must be short
        try:
            server.bind(WEIGHTS)
        finally:
            os.chdir(here)


def linked_config(folder: Path) -> None:
    (folder / "adapter_config.json").rename(folder / "other.json")
    (folder / "adapter_config.json").symlink_to("other.json")


def linked_device(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("/dev/zero")


def folder_for_file(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def too_large(folder: Path) -> None:
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate(files.MAX_WEIGHTS_BYTES + 1)


def large_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{" + " " * files.MAX_CONFIG_BYTES + "}")


def pickle_only(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


HOSTILE = [
    (duplicate_tensor, "DUPLICATE_KEY", f"{Q}.lora_a"),
    (huge_header, "FILE_TOO_LARGE", ""),
    (header_beyond_file, "BAD_SAFETENSORS", ""),
    (header_not_json, "BAD_SAFETENSORS", ""),
    (deep_header, "BAD_SAFETENSORS", ""),
    (overlapping, "BAD_SAFETENSORS", ""),
    (absurd_shape, "BAD_SAFETENSORS", ""),
    (negative_shape, "BAD_SAFETENSORS", ""),
    (trailing_bytes, "BAD_SAFETENSORS", ""),
    (empty_file, "BAD_SAFETENSORS", ""),
    (no_tensors, "NO_TENSORS", ""),
    (dotted_name, "BAD_NAME", "../../etc.lora_a"),
    (control_name, "BAD_NAME", "model\\n\\x1b[31m.lora_a"),
    (long_name, "BAD_NAME", "x" * errors.MAX_SHOWN + "..."),
    (rank_zero, "BAD_RANK", f"{Q}.lora_a"),
    (absurd_rank, "BAD_RANK", f"{Q}.lora_a"),
    (three_dimensions, "UNSUPPORTED_SHAPE", f"{Q}.lora_a"),
    (doubles, "BAD_DTYPE", f"{Q}.lora_a"),
    (unknown_target, "UNKNOWN_MODULE", f"{Q.replace('q_proj', 'x_proj')}.lora_a"),
    (other_width, "SHAPE_MISMATCH", f"{Q}.lora_a"),
    (device_node, "NOT_A_FILE", ""),
    (socket_file, "NOT_A_FILE", ""),
    (linked_config, "LINK", ""),
    (linked_device, "LINK", ""),
    (folder_for_file, "NOT_A_FILE", ""),
    (too_large, "FILE_TOO_LARGE", ""),
    (large_config, "FILE_TOO_LARGE", ""),
    (pickle_only, "FILE_MISSING", ""),
]


@pytest.mark.parametrize(("damage", "code", "tensor"), HOSTILE, ids=[damage.__name__ for damage, _, _ in HOSTILE])
def test_what_is_refused(tmp_path: Path, damage: Callable[[Path], None], code: str, tensor: str) -> None:
    folder = mlx_folder(tmp_path)
    assert accept(folder)
    damage(folder)
    error = refusal(folder)
    assert (error.code, error.tensor) == (code, tensor), str(error)
    assert error.file in ("adapter_config.json", WEIGHTS)
    assert str(error).isprintable(), "it goes to logs and terminals"


@pytest.mark.parametrize("kind", ["pissa", "pissa_niter_16", "PiSSA", "loftq", "olora", "corda"], ids=str)
def test_kinds_that_changed_the_base_are_refused(tmp_path: Path, kind: str) -> None:
    error = refusal(peft_folder(tmp_path, init_lora_weights=kind))
    assert (error.code, error.tensor, error.found) == ("BASE_CHANGED", "init_lora_weights", kind)


def test_another_base_is_known_by_its_recorded_digest(tmp_path: Path) -> None:
    ours = {"ranks": {}, "training": {"base_digest": "a" * 64}}
    manifest = read_manifest(mlx_folder(tmp_path, optiq=ours))
    check_recorded_base(manifest, "a" * 64)
    with pytest.raises(AdapterError) as caught:
        check_recorded_base(manifest, "b" * 64)
    error = caught.value
    assert (error.code, error.tensor) == ("BASE_MISMATCH", "training.base_digest")
    assert (error.expected, error.found) == ("b" * 64, "a" * 64)


def test_another_name_is_a_hint_and_precision_marks_do_not_count(tmp_path: Path) -> None:
    manifest = read_manifest(peft_folder(tmp_path, base_model_name_or_path="HuggingFaceTB/SmolLM2-135M-Instruct"))
    assert another_name(manifest, ["mlx-community/SmolLM2-135M-Instruct-4bit"]) == ""
    assert "made for HuggingFaceTB" in another_name(manifest, ["mlx-community/SmolLM2-360M-Instruct"])
    assert another_name(manifest, ["./some-folder", "/models/other"]) == "", "a folder's name says nothing"
    for name in ("A/B-4bit", "A/b-8bits", "c/B-bf16", "d/b-4bit-dwq", "e/B-GGUF", "f/b.q4_1", "g/B-mlx-8bit"):
        assert model_name(name) == "b", name


JSON = st.recursive(
    st.none()
    | st.just(10**400)
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=12), children, max_size=4),
    max_leaves=12,
)
NAME = st.sampled_from([f"{Q}.lora_a", f"{Q}.lora_b", f"{V}.lora_a", "__metadata__"]) | st.text(max_size=30)
SHAPE = st.lists(st.integers(-2, 1 << 65), max_size=4) | st.sampled_from([[16, 4], [4, 16]])
OFFSETS = st.lists(st.integers(-1, 1 << 65), min_size=1, max_size=3) | st.sampled_from([[0, 256], [256, 512]])
ENTRY = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "BF16", "I8", "F8_E4M3", "x"]) | JSON, "shape": SHAPE, "data_offsets": OFFSETS}
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.dictionaries(NAME, ENTRY | JSON, max_size=4), body=st.binary(max_size=600))
def test_no_header_makes_the_reader_raise_anything_else(tmp_path: Path, header: dict[str, Any], body: bytes) -> None:
    folder = mlx_folder(tmp_path)
    raw(folder, json.dumps(header), body)
    try:
        accept(folder)
    except AdapterError as error:
        assert error.code and error.file
        assert str(error).isprintable()


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=st.dictionaries(st.sampled_from(["peft_type", "r", "lora_alpha", "alpha_pattern", "use_dora",
       "init_lora_weights", "fine_tune_type", "lora_parameters", "model", "bias", "base_model_name_or_path"])
       | st.text(max_size=8), JSON, max_size=6), peft=st.booleans())  # fmt: skip
def test_no_configuration_makes_the_reader_raise_anything_else(
    tmp_path: Path, config: dict[str, Any], peft: bool
) -> None:
    folder = peft_folder(tmp_path) if peft else mlx_folder(tmp_path)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config} if peft else config))
    try:
        accept(folder)
    except AdapterError as error:
        assert error.code and error.file
        assert str(error).isprintable()
