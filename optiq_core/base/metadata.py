"""How many bits each module of a base really has: ``optiq_metadata.json``.

Our imports and conversions write the file; for any other mlx-lm folder the same facts are read from `config.json`
and the headers of the weight files. Nothing here needs MLX.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import msgspec

from ..errors import BaseModelError

FILE_NAME = "optiq_metadata.json"
SCHEMA_FILE = Path(__file__).with_name("optiq_metadata.schema.json")
_FULL_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8}


class ModuleBits(msgspec.Struct, frozen=True, omit_defaults=True):
    """Precision of one module's weight.

    Attributes:
        bits: bits per weight, scales not counted.
        group_size: weights that share a scale; 0 where the weight is not quantized.
        mode: MLX's quantization mode, empty where the weight is not quantized.
        kl: what each candidate that the conversion considered does to the output when only this module has it, by the
            candidate's name; nats per token, or a rating where the conversion's method is static.
    """

    bits: int
    group_size: int = 0
    mode: str = ""
    kl: dict[str, float] = {}


class Conversion(msgspec.Struct, frozen=True, kw_only=True):
    """How `optiq convert` chose the bits.

    Attributes:
        method: ``kl``, ``gradient`` or ``static``.
        allocator: ``greedy`` or ``exact``.
        target_bpw, achieved_bpw: bits per weight, scales and everything else in the file included.
        candidates: names of the options, cheapest first, for example ``4g64``, ``8g64``, ``mxfp4``.
        reference: the candidate whose KL ranks modules by sensitivity.
        calibration: name, digest and number of tokens of the text; empty for the static method.
        protected: patterns of the modules that were to get the best candidate.
        unprotected: modules of these that the target left no room for.
        notes: what else is worth knowing, one sentence each.
    """

    method: str
    allocator: str
    target_bpw: float
    achieved_bpw: float
    candidates: list[str]
    reference: str
    calibration: dict[str, str] = {}
    protected: list[str] = []
    unprotected: list[str] = []
    notes: list[str] = []


class BaseMetadata(msgspec.Struct, frozen=True):
    """Content of ``optiq_metadata.json``.

    Attributes:
        modules: dotted module path to its precision.
        bits_per_weight: bytes of all weights on disk, scales included, times 8, over the number of parameters.
        source: where the base came from.
        versions: packages that made the file.
        conversion: how the bits were chosen, for a folder that `optiq convert` wrote.
    """

    modules: dict[str, ModuleBits]
    bits_per_weight: float
    source: dict[str, str] = {}
    versions: dict[str, str] = {}
    conversion: Conversion | None = None
    format_version: int = 1

    @property
    def layer_bits(self) -> dict[str, int]:
        """Dotted module path to bits."""
        return {path: module.bits for path, module in self.modules.items()}

    def bits_of(self, path: str) -> int | None:
        """Return the bits of a module, or None for a module without a weight matrix of its own."""
        module = self.modules.get(path)
        return module.bits if module else None

    def kl_of(self, path: str) -> float | None:
        """Return a module's KL at the conversion's reference candidate in nats; None where none was measured."""
        module = self.modules.get(path)
        if module is None or self.conversion is None or self.conversion.method == "static":
            return None
        return module.kl.get(self.conversion.reference)


def read_metadata(folder: Path) -> BaseMetadata:
    """Read a base's metadata, or derive it where the file is absent.

    Folders of mlx-optiq carry a file of the same name in another form; it is recognized by its lack of ``modules``, and
    the precision is read from the weights.

    Raises:
        BaseModelError: a file is missing, damaged, or of a newer format.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return derive_metadata(folder)
    try:
        content = msgspec.json.decode(path.read_bytes())
        if isinstance(content, dict) and "modules" not in content and "format_version" not in content:
            return derive_metadata(folder)
        metadata = msgspec.convert(content, type=BaseMetadata)
    except msgspec.MsgspecError as error:
        raise BaseModelError(f"{path}: {error}") from error
    if metadata.format_version != 1:
        raise BaseModelError(f"{path}: format_version is {metadata.format_version}, this Optiq reads 1")
    return metadata


def write_metadata(folder: Path, metadata: BaseMetadata) -> None:
    """Write ``optiq_metadata.json`` into a base folder."""
    (folder / FILE_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(metadata), indent=1))


def derive_metadata(folder: Path, source: dict[str, str] | None = None) -> BaseMetadata:
    """Read the precision of every module from `config.json` and the weight files' headers.

    Raises:
        BaseModelError: a file is missing or damaged.
    """
    config = read_config(folder)
    quantization = config.get("quantization") or {}
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    total_bytes = 0
    for file in weight_files(folder):
        for name, entry in read_safetensors_header(file).items():
            tensors[name] = (entry["dtype"], tuple(entry["shape"]))
            begin, end = entry["data_offsets"]
            total_bytes += end - begin

    modules: dict[str, ModuleBits] = {}
    parameters = 0
    for name, (dtype, shape) in tensors.items():
        path, _, leaf = name.rpartition(".")
        if leaf in ("scales", "biases"):
            continue
        size = _product(shape)
        if leaf == "weight" and f"{path}.scales" in tensors:
            override = quantization.get(path)
            chosen = override if isinstance(override, dict) else quantization
            bits = int(chosen.get("bits", quantization.get("bits", 4)))
            modules[path] = ModuleBits(
                bits,
                int(chosen.get("group_size", quantization.get("group_size", 64))),
                str(chosen.get("mode", "affine")),
            )
            parameters += size * 32 // bits
            continue
        parameters += size
        if leaf == "weight" and len(shape) > 1:
            modules[path] = ModuleBits(_FULL_BITS.get(dtype, 16))
    return BaseMetadata(
        modules=modules,
        bits_per_weight=round(total_bytes * 8 / max(parameters, 1), 4),
        source=source or {},
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Read `config.json`.

    Raises:
        BaseModelError: it is missing or is not a JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BaseModelError(f"{path}: not found; a base folder has config.json and *.safetensors") from error
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(config, dict):
        raise BaseModelError(f"{path}: expected a JSON object")
    return config


def context_length(config: dict[str, Any]) -> int:
    """Longest context in tokens, 0 if the model's configuration does not say."""
    text = config.get("text_config") or config
    return int(text.get("max_position_embeddings") or 0)


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files that mlx-lm would load, in order.

    Raises:
        BaseModelError: there are none.
    """
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise BaseModelError(f"{folder}: no model*.safetensors; expected the weights of an mlx-lm model")
    return files


def read_safetensors_header(file: Path) -> dict[str, Any]:
    """Return the tensors of a safetensors header and check that the file holds all their bytes.

    Raises:
        BaseModelError: truncated, or not a safetensors file.
    """
    size = file.stat().st_size
    with file.open("rb") as handle:
        prefix = handle.read(8)
        if len(prefix) < 8:
            raise BaseModelError(f"{file}: truncated, {size} bytes")
        (length,) = struct.unpack("<Q", prefix)
        if length > size - 8:
            raise BaseModelError(f"{file}: truncated or not safetensors: header of {length} bytes in {size}")
        try:
            header = json.loads(handle.read(length))
        except ValueError as error:
            raise BaseModelError(f"{file}: header is not JSON: {error}") from error
    header.pop("__metadata__", None)
    needed = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size < needed:
        raise BaseModelError(f"{file}: truncated, {size} of {needed} bytes")
    return dict(header)


def _product(shape: tuple[int, ...]) -> int:
    size = 1
    for dimension in shape:
        size *= dimension
    return size
