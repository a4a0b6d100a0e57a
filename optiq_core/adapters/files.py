"""Reads the files of an adapter folder without trusting them."""

from __future__ import annotations

import hashlib
import json
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import AdapterError

MAX_CONFIG_BYTES = 4 << 20
MAX_WEIGHTS_BYTES = 16 << 30
MAX_HEADER_BYTES = 16 << 20
MAX_NAME = 256
# Of each type: the integer of its width, and the exponent's bits, which are all set in NaN and infinity.
_EXPONENTS = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}
_DTYPES = frozenset(_EXPONENTS)


@dataclass(frozen=True)
class TensorInfo:
    """Dtype and shape of a tensor, from the header."""

    dtype: str
    shape: tuple[int, ...]


def regular_file(folder: Path, name: str, limit: int) -> Path:
    """Return a file directly inside the folder after checking what it is.

    Raises:
        AdapterError: absent, a link, not a regular file, or larger than ``limit`` bytes.
    """
    path = folder / name
    try:
        info = path.lstat()
    except FileNotFoundError as error:
        raise AdapterError("FILE_MISSING", "the file is missing", file=name, expected=name, found="nothing") from error
    except OSError as error:
        raise AdapterError("FILE_UNREADABLE", f"the file cannot be read: {error.strerror}", file=name) from error
    if stat.S_ISLNK(info.st_mode):
        raise AdapterError("LINK", "links are not followed; copy the file itself", file=name)
    if not stat.S_ISREG(info.st_mode):
        raise AdapterError("NOT_A_FILE", "expected a regular file", file=name)
    if info.st_nlink > 1:
        raise AdapterError("LINK", "the file has another name elsewhere (hard link); copy the file itself", file=name)
    if info.st_size > limit:
        raise AdapterError(
            "FILE_TOO_LARGE", "the file is too large", file=name, expected=f"<= {limit} bytes", found=str(info.st_size)
        )
    return path


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object; duplicate keys are refused, since readers disagree on which one counts.

    Raises:
        AdapterError: absent, not JSON, not an object, or with a key twice.
    """
    path = regular_file(folder, name, MAX_CONFIG_BYTES)
    try:
        return _json_object(path.read_bytes(), name)
    except OSError as error:
        raise AdapterError("FILE_UNREADABLE", f"the file cannot be read: {error.strerror}", file=name) from error


def _json_object(text: bytes, name: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise AdapterError("DUPLICATE_KEY", "the key appears twice", file=name, tensor=key)
            seen[key] = value
        return seen

    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise AdapterError("BAD_JSON", f"not readable as JSON: {error}", file=name) from error
    if not isinstance(content, dict):
        raise AdapterError(
            "BAD_JSON", "expected a JSON object", file=name, expected="object", found=type(content).__name__
        )
    return content


def read_header(folder: Path, name: str) -> dict[str, TensorInfo]:
    """Read dtype and shape of every tensor; no tensor is loaded and nothing is unpickled.

    Raises:
        AdapterError: absent, truncated, a header that lies or names a tensor twice, no tensors, a name that is none,
            or a dtype that is not float.
    """
    path = regular_file(folder, name, MAX_WEIGHTS_BYTES)
    try:
        _check_header(path, name)
        # safetensors checks that offsets are contiguous, match the shapes and cover the file.
        with safe_open(str(path), framework="numpy") as handle:
            tensors = {}
            for key in handle.keys():  # noqa: SIM118 - not a mapping
                view = handle.get_slice(key)
                tensors[key] = TensorInfo(view.get_dtype(), tuple(view.get_shape()))
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError("BAD_SAFETENSORS", f"not a complete safetensors file: {error}", file=name) from error
    if not tensors:
        raise AdapterError("NO_TENSORS", "the file holds no tensors", file=name)
    for key, info in tensors.items():
        if len(key) > MAX_NAME or not key.isprintable() or "/" in key or ".." in key:
            raise AdapterError(
                "BAD_NAME",
                "not the name of a tensor",
                file=name,
                tensor=key,
                expected=f"a dotted path of at most {MAX_NAME} printable characters",
                found=key,
            )
        if info.dtype not in _DTYPES:
            raise AdapterError(
                "BAD_DTYPE",
                "adapter tensors must be floats",
                file=name,
                tensor=key,
                expected="F32, F16 or BF16",
                found=info.dtype,
            )
    return tensors


def _check_header(path: Path, name: str) -> None:
    """Refuse what readers disagree on or choke on, before the header is parsed as a whole."""
    with path.open("rb") as handle:
        prefix = handle.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        size = path.stat().st_size
        if not 2 <= length <= size - 8:
            raise AdapterError(
                "BAD_SAFETENSORS",
                "the header's length is not possible",
                file=name,
                expected=f"2 to {max(size - 8, 2)} bytes",
                found=str(length),
            )
        if length > MAX_HEADER_BYTES:
            raise AdapterError(
                "FILE_TOO_LARGE",
                "the header is too large",
                file=name,
                expected=f"<= {MAX_HEADER_BYTES} bytes",
                found=str(length),
            )
        try:
            _json_object(handle.read(length), name)
        except AdapterError as error:
            if error.code == "BAD_JSON":
                raise AdapterError("BAD_SAFETENSORS", f"the header: {error.message}", file=name) from error
            raise


def digest_files(folder: Path, config_files: tuple[str, ...], weights_file: str) -> str:
    """Return the hex SHA-256 over the canonical configuration files and every tensor's name, type, shape and bytes.

    Formatting of the JSON files and the order of the tensors do not matter.

    Raises:
        AdapterError: a file changed while it was read, or a tensor has NaN or infinite values.
    """
    hasher = hashlib.sha256()
    for name in sorted(config_files):
        canonical = json.dumps(read_json(folder, name), sort_keys=True, separators=(",", ":"))
        hasher.update(f"{name}\0{len(canonical)}\0{canonical}".encode())
    path = folder / weights_file
    with path.open("rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        header = json.loads(handle.read(length))
        header.pop("__metadata__", None)
        for key in sorted(header):
            entry = header[key]
            begin, end = entry["data_offsets"]
            hasher.update(f"{key}\0{entry['dtype']}\0{entry['shape']}\0{end - begin}\0".encode())
            handle.seek(8 + length + begin)
            remaining = end - begin
            while remaining:
                chunk = handle.read(min(remaining, 1 << 20))
                if not chunk:
                    raise AdapterError(
                        "BAD_SAFETENSORS", "the file became shorter while it was read", file=weights_file
                    )
                if not _finite(chunk, entry["dtype"]):
                    raise AdapterError(
                        "NOT_FINITE",
                        "the tensor has NaN or infinite values",
                        file=weights_file,
                        tensor=key,
                        expected="finite numbers",
                    )
                hasher.update(chunk)
                remaining -= len(chunk)
    return hasher.hexdigest()


def _finite(chunk: bytes, dtype: str) -> bool:
    integer, exponent = _EXPONENTS[dtype]
    bits = np.frombuffer(chunk, integer)
    return not bool(np.any((bits & exponent) == exponent))
