"""Random adapters of a Llama base, written without MLX."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def write_random(folder: Path, base: Path, *, rank: int, seed: int, targets: tuple[str, ...] | None = None) -> int:
    """Write an mlx-lm LoRA folder that adapts linear modules of every block.

    Args:
        base: folder of the base, for its dimensions.
        targets: last path components; all seven of a Llama block if None.

    Returns:
        Bytes of its tensors.
    """
    dims = _block(base)
    layers = json.loads((base / "config.json").read_text())["num_hidden_layers"]
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(layers):
        for path, (inputs, outputs) in dims.items():
            if targets is None or path.rpartition(".")[2] in targets:
                name = f"model.layers.{layer}.{path}"
                tensors[f"{name}.lora_a"] = random.normal(0, inputs**-0.5, (inputs, rank)).astype(np.float32)
                tensors[f"{name}.lora_b"] = random.normal(0, 0.01, (rank, outputs)).astype(np.float32)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapters.safetensors")
    config = {
        "fine_tune_type": "lora",
        "num_layers": layers,
        "lora_parameters": {"rank": rank, "scale": 1.0, "dropout": 0.0},
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return sum(tensor.nbytes for tensor in tensors.values())


def _block(base: Path) -> dict[str, tuple[int, int]]:
    """(input, output) dims of the linear modules of one Llama block."""
    config = json.loads((base / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    return {
        "self_attn.q_proj": (hidden, queries),
        "self_attn.k_proj": (hidden, keys),
        "self_attn.v_proj": (hidden, keys),
        "self_attn.o_proj": (queries, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }
