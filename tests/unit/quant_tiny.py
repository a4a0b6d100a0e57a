"""A tiny base on disk, and its source, for tests of quantization."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from optiq_core.quant.source import Source, load_source
from tests.unit.tiny import tiny_model, tiny_tokenizer

# Characters of the tiny tokenizer, in no regular order.
TEXT = "".join(chr(49 + (i * i * 7 + i * 3) % 60) for i in range(600))


def save_tiny(folder: Path, *, tied: bool = True, layers: int = 3) -> Path:
    """Write the tiny model, unquantized, as a Hugging Face folder would be."""
    model = tiny_model(layers=layers)
    if not tied:
        model.args.tie_word_embeddings = False
        model.lm_head = nn.Linear(64, 64, bias=False)
    config = {"model_type": "llama", **{k: v for k, v in vars(model.args).items() if v is not None}}
    config["torch_dtype"] = "float16"
    folder.mkdir(parents=True)
    weights = {k: v.astype(mx.float16) for k, v in tree_flatten(model.parameters())}
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    (folder / "config.json").write_text(json.dumps(config))
    tiny_tokenizer()._tokenizer.save_pretrained(str(folder))
    return folder


def tiny_source(folder: Path, *, tied: bool = True) -> Source:
    """The tiny model, ready to be measured."""
    return load_source(save_tiny(folder, tied=tied))


def write_text(folder: Path) -> Path:
    """A text that the tiny tokenizer reads."""
    file = folder / "text.txt"
    file.write_text(TEXT)
    return file
