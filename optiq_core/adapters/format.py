"""Reads and validates adapter folders without MLX: mlx-lm's, Hugging Face PEFT's and ours.

The weights file is read by its header only; nothing in a folder is executed or unpickled, links are refused.
"""

from __future__ import annotations

from pathlib import Path

from .against_base import validate_against_base
from .files import digest_files, read_json
from .format_mlx import read_mlx
from .format_peft import read_peft
from .format_tensors import CONFIG, MAX_RANK, MLX_WEIGHTS, OPTIQ_CONFIG, PEFT_WEIGHTS
from .manifest import AdapterManifest, ModuleDelta

__all__ = [
    "CONFIG", "MAX_RANK", "MLX_WEIGHTS", "OPTIQ_CONFIG", "PEFT_WEIGHTS", "AdapterManifest", "ModuleDelta",
    "digest_folder", "read_manifest", "validate_against_base",
]  # fmt: skip


def read_manifest(folder: Path) -> AdapterManifest:
    """Describe an adapter folder from its configuration and the header of its weights file.

    Raises:
        AdapterError: the folder is not an adapter that can be served; names file, field and what would be right.
    """
    config = read_json(folder, CONFIG)
    return read_peft(folder, config) if "peft_type" in config else read_mlx(folder, config)


def digest_folder(folder: Path, manifest: AdapterManifest) -> str:
    """Return the identity of a version: hex SHA-256 over its canonical configuration and its tensor bytes.

    Raises:
        AdapterError: a file changed while it was read.
    """
    configs = tuple(name for name in manifest.files if name != manifest.weights_file)
    return digest_files(folder, configs, manifest.weights_file)
