"""A tiny base on disk with mixed bits and a byte tokenizer, and training data for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map
from mlx_lm.utils import quantize_model, save_config, save_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.unit.tiny import tiny_model

VOCAB = 320
SPECIALS = ("<pad>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# These modules keep 8 bits; everything else has 4.
EIGHT_BITS = ("model.layers.1.self_attn.v_proj", "model.layers.0.self_attn.q_proj")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, after three special ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate((*SPECIALS, *letters))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|im_end|>")
    fast.chat_template = TEMPLATE
    return fast


def write_tiny_base(folder: Path, *, quantized: bool = True, hidden: int = 64, dtype: mx.Dtype = mx.float32) -> Path:
    """An mlx-lm folder: two blocks, 4-bit with two modules at 8; four heads, of 64 channels where ``hidden`` is 256."""
    folder.mkdir(parents=True)
    model = tiny_model(3, vocab=VOCAB, hidden=hidden)
    # A random model's logits are nearly flat; larger weights make differences visible.
    model.update(tree_map(lambda value: value * 3 if value.ndim > 1 else value, model.parameters()))
    model.set_dtype(dtype)
    config: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
    }
    if quantized:
        model, config = quantize_model(
            model,
            config,
            group_size=32,
            bits=4,
            quant_predicate=lambda path, module: {
                "bits": 8 if path in EIGHT_BITS else 4,
                "group_size": 32,
            },
        )
    mx.eval(model.parameters())
    save_model(folder, model)
    save_config(config, folder / "config.json")
    byte_tokenizer().save_pretrained(folder)
    return folder


def write_jsonl(path: Path, records: list[Any]) -> Path:
    """One JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def chat(question: str, answer: str) -> dict[str, Any]:
    """A chat record."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_tiny_data(folder: Path, *, train: int = 10, valid: int = 3, seed: int = 0) -> Path:
    """Additions of small numbers, as chats."""
    rng = np.random.default_rng(seed)

    def records(count: int) -> list[Any]:
        pairs = rng.integers(0, 50, (count, 2)).tolist()
        return [chat(f"{a}+{b}", str(a + b)) for a, b in pairs]

    write_jsonl(folder / "train.jsonl", records(train))
    if valid:
        write_jsonl(folder / "valid.jsonl", records(valid))
    return folder
