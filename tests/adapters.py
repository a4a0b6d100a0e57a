"""Writes adapter folders of any shape, as mlx-lm does, without MLX."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

# The embedded SmolLM2-135M.
HIDDEN = 576
OUTPUTS = {"q_proj": 576, "v_proj": 192}


def write_adapter(
    folder: Path, *, seed: int = 0, rank: int = 4, hidden: int = HIDDEN, layers: tuple[int, ...] = (28, 29)
) -> Path:
    """Make `folder` an adapter that changes what the model says."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in layers:
        for target, outputs in OUTPUTS.items():
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
