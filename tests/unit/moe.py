"""Tiny random mixtures of experts from mlx-lm's own classes, and adapters for them as mlx-lm writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import mixtral, olmoe, phixtral, qwen3_moe
from mlx_lm.tuner.utils import linear_to_lora_layers

KINDS = ("qwen3_moe", "mixtral", "olmoe", "phixtral")
EXPERTS = {"phixtral": ("fc1", "fc2")}


def moe_model(kind: str = "qwen3_moe", seed: int = 0) -> Any:
    """Two blocks, 64 wide, two of four experts per token; the same seed gives the same weights."""
    mx.random.seed(seed)
    common: dict[str, Any] = {
        "model_type": kind, "vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "intermediate_size": 96,
    }  # fmt: skip
    if kind == "mixtral":
        model: Any = mixtral.Model(mixtral.ModelArgs(num_local_experts=4, **common))
    elif kind == "olmoe":
        model = olmoe.Model(olmoe.ModelArgs(num_experts=4, **common))
    elif kind == "phixtral":
        model = phixtral.Model(
            phixtral.ModelArgs(kind, num_vocab=64, model_dim=64, num_heads=4, num_layers=2, rotary_dim=8)
        )
    else:
        model = qwen3_moe.Model(
            qwen3_moe.ModelArgs(
                num_experts=4, decoder_sparse_step=1, mlp_only_layers=[], moe_intermediate_size=96, head_dim=16,
                rope_theta=1e4, tie_word_embeddings=True, max_position_embeddings=512, norm_topk_prob=True, **common,
            )
        )  # fmt: skip
    mx.eval(model.parameters())
    model.eval()
    return model


def adapter_paths(model: Any, leaves: tuple[str, ...]) -> list[str]:
    """Paths of the modules that end so."""
    return [path for path, _ in model.named_modules() if path.endswith(leaves)]


def write_moe_adapter(
    folder: Path, model: Any, leaves: tuple[str, ...], *, rank: int = 4, scale: float = 2.0, seed: int = 0
) -> Path:
    """Write a random adapter with the tensors that mlx-lm's own layers have; ``model`` gets these layers."""
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": adapter_paths(model, leaves)}
    linear_to_lora_layers(model, -1, {**parameters, "keys": set(parameters["keys"])})
    rng = np.random.default_rng(seed)
    tensors = {
        name: mx.array(rng.normal(size=value.shape).astype(np.float32) * 0.2)
        for name, value in tree_flatten(model.parameters())
        if name.rpartition(".")[2] in ("lora_a", "lora_b")
    }
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "adapters.safetensors"), tensors)
    config = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
