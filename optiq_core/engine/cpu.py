"""Prepares a dense model for decoding on the CPU: the same function from modules that are faster there."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from ..base.attention import ATTENTION_CLASSES, BlockedAttention
from ..base.blocked import (
    GATED_CLASSES,
    BlockedEmbedding,
    BlockedLinear,
    FusedRMSNorm,
    GatedMLP,
    SharedAngles,
    SharedRoPE,
    block_width,
)


def prepare_for_cpu(model: nn.Module) -> None:
    """Replace modules of a dense float32 model in place; paths of linear modules and embeddings stay.

    Weights are laid out anew one module at a time, so that no second copy of the model is ever held.
    """
    angles = SharedAngles()
    ropes = [path for path, module in model.named_modules() if type(module) is nn.RoPE]
    first = min(ropes, key=_natural, default="")
    for path in [path for path, _ in model.named_modules()]:
        module = _at(model, path)
        new = _replacement(module, angles, first=path == first)
        if new is not None:
            mx.eval(new.parameters())
            model.update_modules(tree_unflatten([(path, new)]))
    # Last, around the linear modules that they hold now.
    for path, module in list(model.named_modules()):
        if type(module) in GATED_CLASSES:
            model.update_modules(tree_unflatten([(path, GatedMLP(module))]))
        elif type(module) in ATTENTION_CLASSES:
            model.update_modules(tree_unflatten([(path, BlockedAttention(module))]))


def _replacement(module: nn.Module, angles: SharedAngles, *, first: bool) -> nn.Module | None:
    kind: Any = type(module)
    if kind is nn.Linear and _can_block(module.weight):
        return BlockedLinear(module.weight, module.get("bias"))
    if kind is nn.Embedding and _can_block(module.weight):
        return BlockedEmbedding(module.weight)
    if kind is nn.RMSNorm:
        return FusedRMSNorm(module)
    if kind is nn.RoPE and not module.traditional:
        return SharedRoPE(module, angles, first=first)
    return None


def _can_block(weight: mx.array) -> bool:
    outputs, inputs = weight.shape
    return weight.dtype == mx.float32 and block_width(inputs, outputs) > 0


def _at(model: nn.Module, path: str) -> nn.Module:
    module: Any = model
    for part in path.split(".") if path else ():
        module = module[int(part)] if isinstance(module, list) else module[part]
    return module


def _natural(path: str) -> list[int]:
    return [int(part) for part in path.split(".") if part.isdigit()]
