"""Writes adapter folders of any shape, as mlx-lm does, without MLX."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

# The embedded SmolLM2-135M.
HIDDEN = 576
OUTPUTS = {"q_proj": 576, "v_proj": 192}


# The tiny base of tests/unit/tiny.py.
TINY_OUTPUTS = {"q_proj": 64, "v_proj": 32}


def write_tiny_adapter(folder: Path, *, seed: int = 0, rank: int = 4, hidden: int = 64) -> Path:
    """Make `folder` an adapter of the tiny base."""
    return write_adapter(folder, seed=seed, rank=rank, hidden=hidden, layers=(0, 1), outputs_of=TINY_OUTPUTS)


def write_adapter(
    folder: Path,
    *,
    seed: int = 0,
    rank: int = 4,
    hidden: int = HIDDEN,
    layers: tuple[int, ...] = (28, 29),
    outputs_of: Mapping[str, int] = OUTPUTS,
) -> Path:
    """Make `folder` an adapter that changes what the model says."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in layers:
        for target, outputs in outputs_of.items():
            path = f"model.layers.{layer}.self_attn.{target}"
            tensors[f"{path}.lora_a"] = random.normal(0, hidden**-0.5, (hidden, rank)).astype(np.float32)
            tensors[f"{path}.lora_b"] = random.normal(0, 0.05, (rank, outputs)).astype(np.float32)
    save_file(tensors, folder / "adapters.safetensors")
    config = {
        "fine_tune_type": "lora",
        "num_layers": len(layers),
        "lora_parameters": {"rank": rank, "scale": 20.0, "dropout": 0.0},
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
