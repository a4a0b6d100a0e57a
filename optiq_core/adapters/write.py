"""Writes an adapter folder that stock mlx-lm loads unchanged, per-layer ranks included. No MLX here.

mlx-lm knows one rank and one scale per adapter. Where ranks or scales differ, every tensor is padded with zeros to the
largest rank, the scale is multiplied into ``lora_b`` and the stored scale is 1; the product is the same. The
modules are named in full, so nothing depends on which blocks ``num_layers`` would pick. ``optiq_lora_config.json``
holds the true ranks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from optiq_core.adapters.lora_config import FILE_NAME, LoraConfig, encode_lora_config
from optiq_core.errors import AdapterError
from optiq_core.files import staged_folder

Tensor = npt.NDArray[Any]
StoredType = Literal["float32", "float16"]

TENSOR_FILE = "adapters.safetensors"
CONFIG_FILE = "adapter_config.json"
_PACKAGES = ("optiq", "mlx", "mlx-lm")


def write_adapter(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: LoraConfig,
    *,
    dtype: StoredType = "float32",
    overwrite: bool = False,
) -> LoraConfig:
    """Write an adapter folder, staged and then renamed.

    Args:
        folder: the adapter folder; its parent is made if it is not there.
        tensors: ``<path>.lora_a`` ``[in, r]`` and ``<path>.lora_b`` ``[r, out]`` for every path of
            ``config.ranks`` (for mixtures of experts ``[E, r, in]`` and ``[E, out, r]``); ``<path>.m`` ``[out]`` too
            for DoRA.
        config: ``stored_rank``, ``stored_scale`` and ``versions`` are filled in here.
        dtype: how tensors are stored.
        overwrite: replace a folder of that name.

    Returns:
        The configuration as written.

    Raises:
        AdapterError: tensors and ranks do not fit together, or a tensor is not finite.
        FileExistsError: the folder exists and ``overwrite`` is false.
    """
    scales = {config.scales.get(path, config.scale) for path in config.ranks}
    same = len(set(config.ranks.values())) == 1 and len(scales) == 1
    config = msgspec.structs.replace(
        config,
        stored_rank=max(config.ranks.values(), default=0),
        stored_scale=scales.pop() if same else 1.0,
        versions={**{name: version(name) for name in _PACKAGES}, **config.versions},
    )
    stored = stored_tensors(tensors, config, dtype)
    with staged_folder(folder, overwrite=overwrite) as staging:
        # Not save_file: that makes a file which only its owner may read, whatever the umask.
        (staging / TENSOR_FILE).write_bytes(save(stored, metadata={"format": "mlx"}))
        (staging / CONFIG_FILE).write_text(json.dumps(_mlx_lm_config(config), indent=2) + "\n")
        (staging / FILE_NAME).write_bytes(encode_lora_config(config))
    return config


def stored_tensors(tensors: Mapping[str, Tensor], config: LoraConfig, dtype: StoredType) -> dict[str, Tensor]:
    """The tensors as they go into the file: padded and scaled where ``config.stored_scale`` asks for it."""
    leaves = ("lora_a", "lora_b", "m") if config.method == "dora" else ("lora_a", "lora_b")
    expected = {f"{path}.{leaf}" for path in config.ranks for leaf in leaves}
    for name in sorted(expected.symmetric_difference(tensors)):
        if name in expected:
            raise AdapterError("TENSOR_MISSING", "missing", file=TENSOR_FILE, tensor=name)
        raise AdapterError("UNKNOWN_TENSOR", "without a rank in 'ranks'", file=TENSOR_FILE, tensor=name)
    stored: dict[str, Tensor] = {}
    for path, rank in config.ranks.items():
        factor = np.float32(config.scales.get(path, config.scale) / config.stored_scale)
        a, b = (np.asarray(tensors[f"{path}.{leaf}"], np.float32) for leaf in ("lora_a", "lora_b"))
        # Experts store both transposed: [E, r, in] and [E, out, r].
        axis_a, axis_b = (1, 0) if a.ndim == 2 else (1, 2)
        for name, array, axis in ((f"{path}.lora_a", a, axis_a), (f"{path}.lora_b", b * factor, axis_b)):
            if array.shape[axis] != rank:
                raise AdapterError(
                    "SHAPE_MISMATCH",
                    "rank of the tensor is not the one in 'ranks'",
                    file=TENSOR_FILE,
                    tensor=name,
                    expected=str(rank),
                    found=str(array.shape[axis]),
                )
            padding = [(0, 0)] * array.ndim
            padding[axis] = (0, config.stored_rank - rank)
            stored[name] = _finite(np.pad(array, padding), name, dtype)
        if config.method == "dora":
            stored[f"{path}.m"] = _finite(np.asarray(tensors[f"{path}.m"]), f"{path}.m", dtype)
    return stored


def _finite(array: Tensor, name: str, dtype: StoredType) -> Tensor:
    value = np.ascontiguousarray(array.astype(dtype))
    if not np.isfinite(value).all():
        raise AdapterError("NOT_FINITE", "holds NaN or infinity", file=TENSOR_FILE, tensor=name)
    return value


def _mlx_lm_config(config: LoraConfig) -> dict[str, Any]:
    return {
        "model": config.base_model,
        "fine_tune_type": config.method,
        "num_layers": -1,
        "lora_parameters": {
            "rank": config.stored_rank,
            "scale": config.stored_scale,
            "dropout": config.dropout,
            "keys": list(config.ranks),
        },
    }
