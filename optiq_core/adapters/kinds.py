"""Which modules of a model can carry an adapter, and their shapes."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchGLU, SwitchLinear, SwitchMLP

from ..base.blocked import BlockedEmbedding, BlockedLinear
from .manifest import EMBEDDING, EXPERTS, LINEAR, ModuleShape

_STACKS = SwitchLinear | QuantizedSwitchLinear
_EMBEDDINGS = nn.Embedding | nn.QuantizedEmbedding | BlockedEmbedding
# Ends the key of what an adapter adds to an embedding's lookup alone, and not to a head that is tied to it.
LOOKUP = "@lookup"
# Linear modules of one block that are called with the same input; where they are not, they share nothing.
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def adaptable_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return every linear module of a model by its dotted path: plain, quantized, or laid out for the CPU."""
    kinds = nn.Linear | nn.QuantizedLinear | BlockedLinear
    return {path: module for path, module in model.named_modules() if isinstance(module, kinds)}


def adaptable_embeddings(model: nn.Module) -> dict[str, nn.Module]:
    """Return every embedding of a model by its dotted path: plain, quantized, or laid out for the CPU."""
    return {path: module for path, module in model.named_modules() if isinstance(module, _EMBEDDINGS)}


def adaptable_experts(model: nn.Module) -> dict[str, nn.Module]:
    """Return every stack of experts of a model by its dotted path, plain or quantized.

    Only those in mlx-lm's own blocks of experts: how a model routes tokens to others is not known here.
    """
    blocks = {path: m for path, m in model.named_modules() if isinstance(m, SwitchGLU | SwitchMLP)}
    return {
        f"{path}.{name}": module
        for path, block in blocks.items()
        for name, module in block.named_modules()
        if isinstance(module, _STACKS)
    }


def siblings_of(path: str, linears: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Return the paths of the linear modules that read the same input as one, itself among them, in calling order."""
    block, _, leaf = path.rpartition(".")
    group = next((names for names in _SIBLINGS if leaf in names), (leaf,))
    paths = tuple(f"{block}.{name}" if block else name for name in group)
    width = linear_dims(linears[path])[0]
    return tuple(p for p in paths if p in linears and linear_dims(linears[p])[0] == width)


def module_shape(module: nn.Module) -> ModuleShape:
    """Return the shape of a linear module, an embedding or a stack of experts."""
    if isinstance(module, _STACKS):
        return ModuleShape(*linear_dims(module), EXPERTS, module.weight.shape[0])
    if isinstance(module, BlockedEmbedding):
        return ModuleShape(*module.dims, EMBEDDING)
    if isinstance(module, _EMBEDDINGS):
        tokens, columns = module.weight.shape
        width = columns * 32 // module.bits if isinstance(module, nn.QuantizedEmbedding) else columns
        return ModuleShape(tokens, width, EMBEDDING)
    return ModuleShape(*linear_dims(module), LINEAR)


def linear_dims(module: nn.Module) -> tuple[int, int]:
    """Return (input, output) dims of a linear module, or of one expert in a stack, from its weight's shape."""
    if isinstance(module, BlockedLinear):
        return module.dims
    *_, output_dims, columns = module.weight.shape
    if isinstance(module, nn.QuantizedLinear | QuantizedSwitchLinear):
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
