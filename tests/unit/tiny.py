"""A tiny random Llama and adapters for it, made in place."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.tokenizer_utils import TokenizerWrapper
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from optiq_core.adapters.bank import adaptable_modules, linear_dims
from optiq_core.adapters.kinds import adaptable_experts
from optiq_core.adapters.tensors import base_weight
from optiq_core.base import BaseMetadata, LoadedBase, setup_device


def tiny_model(
    seed: int = 0, *, layers: int = 2, vocab: int = 64, hidden: int = 64, heads: int = 4, tied: bool = True
) -> llama.Model:
    """Two blocks, 64 wide, grouped-query attention; the same seed gives the same weights."""
    mx.random.seed(seed)
    model = llama.Model(
        llama.ModelArgs(
            model_type="llama",
            hidden_size=hidden,
            num_hidden_layers=layers,
            intermediate_size=128,
            num_attention_heads=heads,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            vocab_size=vocab,
            max_position_embeddings=512,
            tie_word_embeddings=tied,
        )
    )
    mx.eval(model.parameters())
    model.eval()
    return model


def write_mlx_adapter(
    folder: Path,
    model: llama.Model,
    *,
    rank: int = 4,
    scale: float = 10.0,
    seed: int = 0,
    dora: bool = False,
    targets: tuple[str, ...] = ("q_proj", "v_proj"),
    layers: str = "layers",
) -> Path:
    """Write a random adapter in mlx-lm's format; its delta is large enough to be seen."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for path, module in adaptable_modules(model).items():
        if path.rsplit(".", 1)[-1] in targets and layers in path:
            inputs, outputs = linear_dims(module)
            tensors[f"{path}.lora_a"] = rng.normal(size=(inputs, rank)).astype(np.float32) * 0.1
            tensors[f"{path}.lora_b"] = rng.normal(size=(rank, outputs)).astype(np.float32) * 0.1
            if dora:
                norm = np.array(mx.linalg.norm(base_weight(module), axis=1))
                tensors[f"{path}.m"] = (norm * rng.uniform(0.8, 1.2, outputs)).astype(np.float32)
    for path, stack in adaptable_experts(model).items():
        if path.rsplit(".", 1)[-1] in targets and layers in path and not dora:
            inputs, outputs = linear_dims(stack)
            experts = stack.weight.shape[0]
            tensors[f"{path}.lora_a"] = rng.normal(size=(experts, rank, inputs)).astype(np.float32) * 0.1
            tensors[f"{path}.lora_b"] = rng.normal(size=(experts, outputs, rank)).astype(np.float32) * 0.1
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapters.safetensors")
    config = {
        "fine_tune_type": "dora" if dora else "lora",
        "num_layers": -1,
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0, "keys": ["self_attn.q_proj"]},
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def tiny_tokenizer(vocab: int = 64) -> TokenizerWrapper:
    """Token ``i`` is the character ``chr(48 + i)``; 0 ends a turn, and nothing else is special."""
    words = {"<eos>": 0, **{chr(48 + i): i for i in range(1, vocab)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return TokenizerWrapper(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>"))


def save_tiny_base(folder: Path, seed: int = 0) -> Path:
    """Write the tiny model as an mlx-lm folder that a daemon can serve; an engine has it in about a second."""
    model = tiny_model(seed)
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
    config = {**dataclasses.asdict(model.args), "architectures": ["LlamaForCausalLM"], "eos_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    tiny_tokenizer()._tokenizer.save_pretrained(str(folder))
    return folder


def tiny_base(seed: int = 0, *, hidden: int = 64, model: Any = None) -> LoadedBase:
    """The tiny model, or another one with its vocabulary, as the engine takes it."""
    return LoadedBase(
        model=model or tiny_model(seed, hidden=hidden),
        tokenizer=tiny_tokenizer(),
        config={"max_position_embeddings": 512},
        path=Path("tiny"),
        digest="0" * 64,
        profile=setup_device(),
        memory_bytes=0,
        metadata=BaseMetadata({}, 32.0),
    )
