"""A base as a model whose weights are never read: shapes and types from its files, or from config.json alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.utils import dequantize_model, load_model

from optiq_core.base.load_in import LoadIn, quantize_at_load
from optiq_core.base.metadata import BaseMetadata, ModuleBits, read_config, read_metadata
from optiq_core.errors import BaseModelError

_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def lazy_model(folder: Path, *, dense: bool, load_in: LoadIn | None = None) -> tuple[Any, BaseMetadata]:
    """The model of a base and its bits per module, without reading or allocating a weight.

    Args:
        folder: an mlx-lm model folder; without weight files, config.json decides on types and quantization.
        dense: weights as float32, as :func:`optiq_core.base.load_base` makes them on the CPU.
        load_in: quantize an unquantized base, as at load.

    Raises:
        BaseModelError: mlx-lm has no such architecture, or its configuration is incomplete.
    """
    weights = any(folder.glob("model*.safetensors"))
    try:
        if weights:
            model, _ = load_model(folder, lazy=True)
            metadata = read_metadata(folder)
        else:
            model, metadata = _from_config(read_config(folder))
    except BaseModelError:
        raise
    except Exception as error:  # mlx-lm raises whatever its model classes raise
        raise BaseModelError(f"{folder / 'config.json'}: mlx-lm cannot build this model: {error}") from error
    if load_in:
        metadata, _ = quantize_at_load(model, metadata, load_in, folder)
    if dense:
        # The same calls as when the base is loaded for real, so that the same modules become dense.
        model.set_dtype(mx.float32)
        dequantize_model(model)
        model.set_dtype(mx.float32)
    return model, metadata


def _from_config(config: dict[str, Any]) -> tuple[Any, BaseMetadata]:
    from mlx_lm.utils import _get_classes

    model_class, args_class = _get_classes(config=config)
    model = model_class(args_class.from_dict(config))
    text = config.get("text_config") or {}
    named = (
        config.get("torch_dtype") or config.get("dtype") or text.get("torch_dtype") or text.get("dtype") or "bfloat16"
    )
    model.set_dtype(_DTYPES.get(str(named), mx.bfloat16))
    quantization = config.get("quantization")
    modules: dict[str, ModuleBits] = {}
    if isinstance(quantization, dict):
        _quantize(model, quantization, modules)
    return model, BaseMetadata(modules=modules, bits_per_weight=0.0)


def _quantize(model: nn.Module, quantization: dict[str, Any], modules: dict[str, ModuleBits]) -> None:
    """Quantize what config.json says is, and of the rest what mlx-lm's own converter would."""
    group, bits = int(quantization["group_size"]), int(quantization["bits"])

    def chosen(path: str, module: nn.Module) -> bool | dict[str, Any]:
        own = quantization.get(path, True)
        settings = own if isinstance(own, dict) else {}
        size = int(settings.get("group_size", group))
        if not own or not hasattr(module, "to_quantized") or module.weight.shape[-1] % size:
            return False
        modules[path] = ModuleBits(int(settings.get("bits", bits)), size, str(settings.get("mode", "affine")))
        return settings or True

    nn.quantize(model, group_size=group, bits=bits, mode=quantization.get("mode", "affine"), class_predicate=chosen)
