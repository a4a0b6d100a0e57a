"""Which modules of a model can carry an adapter, and their shapes."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..base.blocked import BlockedLinear


def adaptable_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return every linear module of a model by its dotted path: plain, quantized, or laid out for the CPU."""
    kinds = nn.Linear | nn.QuantizedLinear | BlockedLinear
    return {path: module for path, module in model.named_modules() if isinstance(module, kinds)}


def linear_dims(module: nn.Module) -> tuple[int, int]:
    """Return (input, output) dims of a linear module, from its weight's shape."""
    if isinstance(module, BlockedLinear):
        return module.dims
    output_dims, columns = module.weight.shape
    if isinstance(module, nn.QuantizedLinear):
        return columns * 32 // module.bits, output_dims
    return columns, output_dims


def compute_dtype(model: nn.Module) -> mx.Dtype:
    """Return the type in which a bank adds to this model: the model's own, float32 on the CPU.

    ``gather_mm`` takes nothing but float32 there.
    """
    if mx.default_device() == mx.Device(mx.cpu):
        return mx.float32
    floats = (mx.float16, mx.bfloat16, mx.float32)
    return next((v.dtype for _, v in tree_flatten(model.parameters()) if v.dtype in floats), mx.float16)
