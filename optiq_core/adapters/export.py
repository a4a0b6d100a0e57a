"""Writes an adapter in another program's format, with the same function: mlx-lm's or Hugging Face PEFT's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save

from ..errors import AdapterError
from ..files import staged_folder
from .arrays import ModuleArrays, read_arrays
from .format import CONFIG, MLX_WEIGHTS, PEFT_WEIGHTS, read_manifest
from .peft_config import PREFIX

ExportFormat = Literal["mlx-lm", "peft"]
# Names of embeddings in mlx-lm's models; a folder of mlx-lm's does not tell them from linear modules.
_EMBEDDINGS = ("embed_tokens", "embed_in", "embeddings", "tok_embeddings", "word_embeddings", "wte")
EXPORT_FORMATS: tuple[ExportFormat, ...] = ("mlx-lm", "peft")


def export_adapter(source: Path, target: Path, form: ExportFormat, *, overwrite: bool = False) -> None:
    """Write the adapter in ``source`` to ``target`` in another format; tensors are stored as float32.

    mlx-lm knows one rank and one scale: where they differ, tensors are padded with zeros, and the scale is in
    ``lora_b``. PEFT keeps each module's own rank and alpha, by its full path.

    Raises:
        AdapterError: ``source`` is no adapter, or adapts something other than linear modules.
        FileExistsError: ``target`` exists and ``overwrite`` is false.
    """
    manifest = read_manifest(source)
    modules = read_arrays(source, manifest)
    write = _mlx if form == "mlx-lm" else _peft
    tensors, config = write(modules, manifest.base_model, dora=manifest.kind == "dora")
    with staged_folder(target, overwrite=overwrite) as staging:
        name = MLX_WEIGHTS if form == "mlx-lm" else PEFT_WEIGHTS
        metadata = {"format": "mlx" if form == "mlx-lm" else "pt"}
        (staging / name).write_bytes(save(tensors, metadata=metadata))
        (staging / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _mlx(
    modules: Mapping[str, ModuleArrays], base: str, *, dora: bool
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    rank = max(module.rank for module in modules.values())
    scales = {module.scale for module in modules.values()}
    scale = scales.pop() if len(scales) == 1 else 1.0
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for path, module in modules.items():
        extra = rank - module.rank
        factor = np.float32(module.scale / scale) if scale else np.float32(1)
        tensors[f"{path}.lora_a"] = np.pad(module.a, ((0, 0), (0, extra)))
        tensors[f"{path}.lora_b"] = np.pad(module.b * factor, ((0, extra), (0, 0)))
        if module.magnitude is not None:
            tensors[f"{path}.m"] = module.magnitude
    return tensors, {
        "model": base,
        "fine_tune_type": "dora" if dora else "lora",
        "num_layers": -1,
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0, "keys": list(modules)},
    }


def _peft(
    modules: Mapping[str, ModuleArrays], base: str, *, dora: bool
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    first = next(iter(modules.values()))
    rank, alpha = first.rank, first.scale * first.rank
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for path, module in modules.items():
        if path.rpartition(".")[2] in _EMBEDDINGS:
            raise AdapterError(
                "UNSUPPORTED_KIND",
                "PEFT's adapters of embeddings leave a tied head alone, this one changes it",
                file=MLX_WEIGHTS,
                tensor=f"{path}.lora_a",
                expected="linear modules",
                found="an embedding",
            )
        name = f"{PREFIX}{path}"
        tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(module.a.T)
        tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(module.b.T)
        if module.magnitude is not None:
            tensors[f"{name}.lora_magnitude_vector"] = module.magnitude
        # Keys are regular expressions that match the end of a path: anchored, or one module's would fit another's.
        key = "^" + re.escape(path)
        if module.rank != rank:
            ranks[key] = module.rank
        if module.scale * module.rank != alpha:
            alphas[key] = module.scale * module.rank
    return tensors, {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "target_modules": list(modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_dora": dora,
        "use_rslora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }
