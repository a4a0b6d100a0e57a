"""The modules of a model that quantization can choose bits for, and where they stand in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from optiq_core.errors import QuantizationError
from optiq_core.quant.options import Option

# The first and the last block, embeddings and head; also the default of `optiq convert --protect`.
PROTECTED = ("embeddings", "lm_head", "first", "last")


@dataclass(frozen=True)
class QuantTarget:
    """A module whose bits are to be chosen.

    Attributes:
        path: dotted path.
        module: the dense module, with its ``weight`` [..., out, in].
        shape: of the weight.
        block: index of the transformer block that it belongs to; -1 before or beside the blocks, the number of
            blocks after them.
        options: what its weight can be quantized to, cheapest first.
    """

    path: str
    module: nn.Module
    shape: tuple[int, ...]
    block: int
    options: tuple[Option, ...]

    @property
    def size(self) -> int:
        """Number of values of the weight."""
        return math.prod(self.shape)

    @property
    def is_embedding(self) -> bool:
        """Whether it turns tokens into vectors, and perhaps, where head and embedding are tied, back."""
        return isinstance(self.module, nn.Embedding)


def find_quant_targets(model: Any, options: Sequence[Option]) -> list[QuantTarget]:
    """List a dense model's modules that can be quantized, in the order of the forward pass.

    Modules that the model's own ``quant_predicate`` keeps in float, or whose rows no option divides, are left out.

    Args:
        model: an mlx-lm model with dense weights.
        options: candidates; every module gets those whose groups divide its rows.

    Raises:
        QuantizationError: there is none.
    """
    predicate = getattr(model, "quant_predicate", None)
    blocks = block_paths(model)
    targets = []
    for path, module in tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module):
        if not hasattr(module, "to_quantized"):
            continue
        wanted = True if predicate is None else predicate(path, module)
        if not wanted:
            continue
        own = [o for o in options if o.fits(module.weight.shape)]
        if isinstance(wanted, dict) and "bits" in wanted:
            # The architecture says what this one needs, for example 8 bits for a router.
            own = [Option(wanted["bits"], wanted.get("group_size", 64), wanted.get("mode", "affine"))]
        if own:
            block = _block_of(path, blocks, after=_is_head(path))
            targets.append(QuantTarget(path, module, tuple(module.weight.shape), block, tuple(own)))
    if not targets:
        raise QuantizationError("the model has no module whose rows divide into groups of the candidates' sizes")
    return sorted(targets, key=lambda t: t.block)


def block_paths(model: Any) -> list[str]:
    """Dotted paths of the transformer blocks, first to last."""
    names = {id(module): path for path, module in model.named_modules()}
    return [names[id(block)] for block in model.layers if id(block) in names]


def protected_paths(targets: Sequence[QuantTarget], patterns: Sequence[str]) -> set[str]:
    """Return the paths that patterns name.

    Args:
        targets: the modules.
        patterns: ``embeddings``, ``lm_head``, ``first``, ``last`` (block), or a glob over paths such as ``*.v_proj``.

    Raises:
        QuantizationError: a glob that matches nothing.
    """
    last = max((t.block for t in targets if not _is_head(t.path)), default=-1)
    found: set[str] = set()
    for pattern in patterns:
        rules = {
            "embeddings": [t.path for t in targets if t.is_embedding],
            "lm_head": [t.path for t in targets if _is_head(t.path)],
            "first": [t.path for t in targets if t.block == 0],
            "last": [t.path for t in targets if t.block == last and last >= 0],
        }
        matched = rules.get(pattern)
        if matched is None:
            matched = [t.path for t in targets if fnmatchcase(t.path, pattern)]
            if not matched:
                raise QuantizationError(
                    f"--protect {pattern}: matches no module; modules are named like {targets[-1].path}, "
                    f"and {', '.join(PROTECTED)} stand for groups of them"
                )
        found.update(matched)
    return found


def quantize_dequantize(weight: mx.array, option: Option, store: mx.Dtype) -> mx.array:
    """Return a weight as it comes back from a quantized file, in float32.

    Args:
        weight: [..., out, in].
        option: what to quantize to.
        store: type of scales and biases in the file.
    """
    packed, scales, *rest = mx.quantize(
        weight.astype(store), group_size=option.group_size, bits=option.bits, mode=option.mode
    )
    biases = None
    if rest:
        # Widened first, as the CPU profile does at load: the product would be rounded to 16 bits otherwise.
        scales, biases = scales.astype(mx.float32), rest[0].astype(mx.float32)
    back = mx.dequantize(packed, scales, biases, group_size=option.group_size, bits=option.bits, mode=option.mode)
    return back.astype(mx.float32)


def _is_head(path: str) -> bool:
    return path.rsplit(".", 1)[-1] in ("lm_head", "output")


def _block_of(path: str, blocks: Sequence[str], *, after: bool) -> int:
    for index, block in enumerate(blocks):
        if path.startswith(f"{block}."):
            return index
    return len(blocks) if after else -1
