"""Random adapters of any shape, as tensors and as folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters.manifest import LINEAR, ModuleShape

TARGETS = {"qv": ("q_proj", "v_proj"), "all": ("",)}
# Large enough that every adapter says something else, small enough that the model still makes sense.
_SIZE = 0.05
_SCALE = 2.0


def chosen(modules: Mapping[str, ModuleShape], targets: str) -> dict[str, tuple[int, int]]:
    """Return path and (input, output) dims of the blocks' linear modules that ``qv`` or ``all`` name."""
    return {
        path: (dims.input_dims, dims.output_dims)
        for path, dims in modules.items()
        if dims.kind == LINEAR and ".layers." in f".{path}" and path.endswith(TARGETS[targets])
    }


def matrices(dims: tuple[int, int], rank: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return A [in, rank] and B [rank, out], float32."""
    inputs, outputs = dims
    a = random.standard_normal((inputs, rank), np.float32) * inputs**-0.5
    b = random.standard_normal((rank, outputs), np.float32) * _SIZE
    return a, b


def random_deltas(modules: Mapping[str, tuple[int, int]], rank: int, seed: int, *, dora: bool) -> dict[str, Any]:
    """Return an adapter as the bank takes it, in float32."""
    import mlx.core as mx

    from ..adapters.tensors import DeltaTensors

    random = np.random.default_rng(seed)
    deltas = {}
    for path, dims in modules.items():
        a, b = matrices(dims, rank, random)
        gain = mx.array(random.uniform(-0.05, 0.05, dims[1]).astype(np.float32)) if dora else None
        deltas[path] = DeltaTensors(mx.array(np.ascontiguousarray(a.T)).T, mx.array(b * _SCALE), gain)
    return deltas


def write_folder(folder: Path, modules: Mapping[str, tuple[int, int]], rank: int, seed: int) -> Path:
    """Write a random LoRA adapter in mlx-lm's format."""
    from safetensors.numpy import save_file

    random = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for path, dims in modules.items():
        tensors[f"{path}.lora_a"], tensors[f"{path}.lora_b"] = matrices(dims, rank, random)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapters.safetensors")
    parameters = {"rank": rank, "scale": _SCALE, "dropout": 0.0}
    config = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
