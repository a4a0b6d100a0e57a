"""How a model is computed while it is trained; on the CPU in float32, by operations that are faster there.

Classes are patched, not modules: a model keeps its modules, and whoever trains leaves it as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from optiq_core.base.attention import ATTENTION_CLASSES
from optiq_core.base.blocked import GATED_CLASSES
from optiq_core.train.cpu_attention import causal_attention
from optiq_core.train.cpu_ops import cross_entropy, rotate, swiglu
from optiq_core.train.exportable import is_exporting
from optiq_core.train.layers import recomputed_blocks
from optiq_core.train.loss import CrossEntropy
from optiq_core.train.packed import PackedCache
from optiq_core.train.patches import patched_calls
from optiq_core.train.stages import staged_blocks


def takes_cpu_forms(model: nn.Module) -> bool:
    """Whether all floats of a model are of the type that the CPU's fast operations take."""
    floats = (v.dtype for _, v in tree_flatten(model.parameters()) if mx.issubdtype(v.dtype, mx.floating))
    return all(dtype == mx.float32 for dtype in floats)


def cross_entropy_for(model: nn.Module, *, on_cpu: bool | None = None) -> CrossEntropy:
    """The cross-entropy for :func:`optiq_core.train.loss.loss_for`; MLX's own where that is as fast."""
    return cross_entropy if _fast(model, on_cpu) else nn.losses.cross_entropy


@contextmanager
def training_forms(model: nn.Module, *, grad_checkpoint: bool, on_cpu: bool | None = None) -> Iterator[None]:
    """While entered, the model is computed as the trainer computes it.

    Args:
        model: with or without low-rank layers.
        grad_checkpoint: every block recomputes its activations.
        on_cpu: whether the CPU computes it; the default device if absent.
    """
    with (
        fast_blocks(model, _fast(model, on_cpu)),
        recomputed_blocks(model, grad_checkpoint),
        staged_blocks(model),
    ):
        yield


@contextmanager
def fast_blocks(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Patch the classes of the model's modules that have a CPU form."""
    kinds = {type(module) for _, module in model.named_modules()} if enabled else set()
    patches: dict[Any, Any] = dict.fromkeys(kinds & set(GATED_CLASSES), _gated)
    patches |= {kind: _attention(kind.__call__) for kind in kinds & set(ATTENTION_CLASSES)}
    patches |= {kind: _rope(kind.__call__) for kind in kinds & {nn.RoPE}}
    with patched_calls(patches):
        yield


def _gated(mlp: Any, x: mx.array) -> mx.array:
    return mlp.down_proj(swiglu(mlp.gate_proj(x), mlp.up_proj(x)))


def _attention(original: Any) -> Any:
    def attention(module: Any, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        packed = isinstance(cache, PackedCache) and not cache.windowed
        if not packed and not (cache is None and isinstance(mask, str)):
            return original(module, x, mask, cache)
        rows, length, _ = x.shape
        queries = module.rope(_heads(module, module.q_proj(x), module.n_heads, "q_norm"))
        keys = module.rope(_heads(module, module.k_proj(x), module.n_kv_heads, "k_norm"))
        values = _heads(module, module.v_proj(x), module.n_kv_heads, "")
        # A traced graph has no examples: rows of one, the most that a row can need.
        known = packed and not is_exporting()
        bounds = cache.bounds if known else (((0, length),),) * rows
        seen = causal_attention(queries, keys, values, scale=module.scale, rows=bounds)
        return module.o_proj(seen.swapaxes(1, 2).reshape(rows, length, -1))

    return attention


def _heads(module: Any, y: mx.array, count: int, norm: str) -> mx.array:
    y = y.reshape(*y.shape[:2], count, -1)
    return (module[norm](y) if norm in module else y).swapaxes(1, 2)


def _rope(original: Any) -> Any:
    def rope(module: Any, x: mx.array, offset: Any = 0) -> mx.array:
        if module.traditional or module.dims != x.shape[-1] or not isinstance(offset, int) or offset:
            return original(module, x, offset)
        return rotate(x, module.dims, module.base, module.scale)

    return rope


def _fast(model: nn.Module, on_cpu: bool | None) -> bool:
    cpu = mx.default_device() == mx.cpu if on_cpu is None else on_cpu
    return cpu and takes_cpu_forms(model)
