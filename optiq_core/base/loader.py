"""Finds a base and loads it: local mlx-lm folder, GGUF file, hub id, or the embedded model."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import BaseModelError
from .converted import EMBEDDED_ARGUMENTS, converted
from .device import DeviceProfile, setup_device
from .embedded import MODEL_NAME, SHA256, Progress, embedded_gguf
from .load_in import LoadIn, quantize_at_load
from .metadata import BaseMetadata, context_length, read_config, read_metadata, read_safetensors_header, weight_files
from .paths import cache_path

EMBEDDED = "embedded"
EMBEDDED_MIXED = "embedded-mixed"
_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")


@dataclass(frozen=True)
class LoadedBase:
    """A base in memory.

    Attributes:
        model: the mlx-lm model.
        tokenizer: mlx-lm's tokenizer wrapper.
        config: content of `config.json`.
        path: the mlx-lm folder it came from.
        digest: hex SHA-256 over the configuration, the weight files' headers and how it was quantized at load.
        profile: the device profile it was loaded for.
        memory_bytes: bytes of the weights as computed with.
        metadata: bits of every module on disk, or as quantized at load.
    """

    model: Any
    tokenizer: Any
    config: dict[str, Any]
    path: Path
    digest: str
    profile: DeviceProfile
    memory_bytes: int
    metadata: BaseMetadata

    @property
    def bits_per_weight(self) -> float:
        """Mean bits per weight on disk or as quantized at load, scales included."""
        return self.metadata.bits_per_weight

    @property
    def max_context(self) -> int:
        """Longest context in tokens, 0 if the model does not say."""
        return context_length(self.config)


def resolve_base(model: str, *, progress: Progress | None = None) -> Path:
    """Return the mlx-lm folder of a base; downloads or imports it on first use.

    Args:
        model: ``embedded``, ``embedded-mixed`` (the same model in mixed precision), a folder, a ``.gguf`` file, or a
            hub id ``owner/name``.
        progress: called with one sentence per long step.

    Raises:
        BaseModelError: nothing of that name, or it cannot be loaded by MLX.
    """
    say = progress or (lambda _: None)
    if model in (EMBEDDED, MODEL_NAME):
        return _imported(embedded_gguf(say), SHA256, say)
    if model == EMBEDDED_MIXED:
        return converted(resolve_base(EMBEDDED, progress=progress), SHA256, EMBEDDED_ARGUMENTS, say)
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise BaseModelError(f"{path}: no such file")
        with path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        return _imported(path, digest, say)
    if path.is_dir():
        check_folder(path)
        return path.resolve()
    if path.exists():
        raise BaseModelError(f"{path}: expected a folder of an mlx-lm model, or a .gguf file")
    if _HUB_ID.match(model) and not model.startswith((".", "~")):
        return _from_hub(model, say)
    raise BaseModelError(
        f"{model}: no such folder, and not a hub id (owner/name); use '{EMBEDDED}' for the model that comes with Optiq"
    )


def load_base(folder: Path, *, profile: DeviceProfile | None = None, load_in: LoadIn | None = None) -> LoadedBase:
    """Load a base for the device.

    Args:
        folder: an mlx-lm model folder, as :func:`resolve_base` returns it.
        profile: the device profile; chosen if absent.
        load_in: quantize an unquantized base to this; what could not be done as asked is in the profile's notes.

    Raises:
        BaseModelError: the folder is incomplete, damaged, of an unknown architecture, or quantized already.
    """
    profile = profile or setup_device()
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model, load_tokenizer

    digest = check_folder(folder)
    try:
        model, config = load_model(folder, lazy=True)
        tokenizer = load_tokenizer(folder, eos_token_ids=eos_ids(config))
    except Exception as error:  # mlx-lm raises whatever its model classes raise
        raise BaseModelError(f"{folder}: mlx-lm cannot load it: {error}") from error
    metadata = read_metadata(folder)
    if load_in:
        metadata, notes = quantize_at_load(model, metadata, load_in, folder)
        profile = replace(profile, notes=(*profile.notes, *notes))
        digest = hashlib.sha256(f"{digest} {load_in}".encode()).hexdigest()
    if profile.dense:
        make_dense(model, mx.float32)
    mx.eval(model.parameters())
    memory = sum(value.nbytes for _, value in tree_flatten(model.parameters()))
    return LoadedBase(model, tokenizer, config, folder, digest, profile, memory, metadata)


def make_dense(model: Any, dtype: Any) -> None:
    """Dequantize every module, in place.

    Scales are widened before the product is formed: float16 arithmetic would round the weights once more.

    Args:
        model: an mlx-lm model.
        dtype: of all floats afterwards; None leaves them as they are.
    """
    from mlx_lm.utils import dequantize_model

    if dtype is not None:
        model.set_dtype(dtype)
    dequantize_model(model)
    if dtype is not None:
        model.set_dtype(dtype)


def eos_ids(config: dict[str, Any]) -> list[int] | None:
    """Return the tokens that end a turn, as mlx-lm's tokenizer loader takes them."""
    ids = config.get("eos_token_id")
    return [ids] if isinstance(ids, int) else ids


def check_folder(folder: Path) -> str:
    """Return the digest of a base folder after checking that its weight files are complete."""
    hasher = hashlib.sha256(json.dumps(read_config(folder), sort_keys=True).encode())
    for file in weight_files(folder):
        header = read_safetensors_header(file)
        hasher.update(json.dumps([file.name, header], sort_keys=True).encode())
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        raise BaseModelError(f"{folder}: no tokenizer.json or tokenizer.model")
    return hasher.hexdigest()


def _imported(file: Path, digest: str, say: Progress) -> Path:
    """Return the base folder of a GGUF file with this hex SHA-256, importing it on first use."""
    # The format number changes when an import would write other content.
    folder = cache_path() / "bases" / f"{file.stem.lower()}-{digest[:12]}-f1"
    if not (folder / "config.json").exists():
        setup_device()
        from .gguf_import import import_gguf

        say(f"importing {file.name}")
        import_gguf(file, folder)
    return folder


def _from_hub(model: str, say: Progress) -> Path:
    from mlx_lm.utils import _download

    say(f"looking up {model} on the hub")
    try:
        folder = Path(_download(model))
    except Exception as error:  # the hub client raises its own, requests' and OS errors
        raise BaseModelError(f"{model}: not a local folder, and the hub did not provide it: {error}") from error
    check_folder(folder)
    return folder
