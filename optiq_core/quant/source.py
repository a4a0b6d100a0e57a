"""The model that a conversion or an evaluation starts from, with dense weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import psutil
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model, load_tokenizer

from optiq_core.base.loader import check_folder, eos_ids, make_dense
from optiq_core.base.metadata import read_metadata
from optiq_core.errors import BaseModelError
from optiq_core.quant.partial import content_digest

_TYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}
# Activations, logits and what else runs on the machine.
_HEADROOM = 0.7


@dataclass(frozen=True)
class Source:
    """A model to convert.

    Attributes:
        model: dense; float32 where that fits into memory.
        tokenizer: mlx-lm's wrapper.
        config: content of `config.json` without its quantization.
        folder: where it came from.
        store: the type in which it keeps floats on disk.
        content: hex SHA-256 over configuration and weights.
        bits_per_weight: on disk.
        notes: what is worth knowing about it, one sentence each.
    """

    model: Any
    tokenizer: Any
    config: dict[str, Any]
    folder: Path
    store: mx.Dtype
    content: str
    bits_per_weight: float
    notes: tuple[str, ...]


def load_source(folder: Path, *, run: bool = True) -> Source:
    """Load a model with dense weights.

    Args:
        folder: an mlx-lm or Hugging Face folder, as :func:`optiq_core.base.resolve_base` returns it.
        run: it will be run, so floats are widened to float32; otherwise weights stay as they are, and on disk until
            they are used.

    Raises:
        BaseModelError: it is incomplete, damaged, or of an unknown architecture.
    """
    check_folder(folder)
    metadata = read_metadata(folder)
    try:
        model, config = load_model(folder, lazy=True)
        tokenizer = load_tokenizer(folder, eos_token_ids=eos_ids(config))
    except Exception as error:  # mlx-lm raises whatever its model classes raise
        raise BaseModelError(f"{folder}: mlx-lm cannot load it: {error}") from error
    notes = []
    quantized = bool(config.pop("quantization", None))
    config.pop("quantization_config", None)
    if quantized:
        notes.append(
            f"the source is already quantized ({metadata.bits_per_weight:.2f} bits per weight): "
            "everything is measured against its dequantized weights, which lie on that grid"
        )
    store = _store_type(model, config)
    if run and not _widen(model):
        notes.append("float32 weights do not fit into memory: measured with the weights' own type, which is noisier")
    elif quantized and not run:
        make_dense(model, None)
    return Source(
        model, tokenizer, config, folder, store, content_digest(folder), metadata.bits_per_weight, tuple(notes)
    )


def _widen(model: Any) -> bool:
    parameters = sum(_parameters(m) for _, m in model.named_modules())
    limit = mx.device_info().get("max_recommended_working_set_size") if mx.metal.is_available() else None
    if 4 * parameters > _HEADROOM * float(limit or psutil.virtual_memory().available):
        make_dense(model, None)
        return False
    make_dense(model, mx.float32)
    mx.eval(model.parameters())
    return True


def _parameters(module: Any) -> int:
    weight = module.get("weight")
    if not isinstance(weight, mx.array):
        return 0
    return int(weight.size * 32 // module.bits if weight.dtype == mx.uint32 else weight.size)


def _store_type(model: Any, config: dict[str, Any]) -> mx.Dtype:
    named = config.get("torch_dtype") or config.get("dtype") or (config.get("text_config") or {}).get("dtype")
    if named in _TYPES:
        return _TYPES[named]
    floats = [v.dtype for _, v in tree_flatten(model.parameters()) if mx.issubdtype(v.dtype, mx.floating)]
    return max(set(floats), key=floats.count)
