"""Quantization at load time: an unquantized base in 4, 6 or 8 bits, or MXFP4, for serving and for QLoRA.

Nothing is written. `optiq convert` chooses bits by sensitivity and does the work once; this is quicker to try.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from ..errors import BaseModelError
from .metadata import BaseMetadata, ModuleBits

LoadIn = Literal["4bit", "6bit", "8bit", "mxfp4"]
LOAD_IN: tuple[LoadIn, ...] = get_args(LoadIn)

# Group sizes to try in turn: rows must divide.
_AFFINE_GROUPS = (128, 64, 32)
_MX_GROUPS = (32,)


def quantize_at_load(
    model: Any, metadata: BaseMetadata, load_in: LoadIn, folder: Path
) -> tuple[BaseMetadata, tuple[str, ...]]:
    """Quantize a model's linear and embedding modules in place.

    Args:
        model: as mlx-lm loaded it.
        metadata: of the folder.
        load_in: the precision.
        folder: for messages.

    Returns:
        The metadata of what is in memory now, and a sentence for each thing that is not as asked.

    Raises:
        BaseModelError: the base is quantized already.
    """
    from mlx import nn
    from mlx.utils import tree_flatten
    from mlx_lm.utils import compute_bits_per_weight

    if any(module.mode for module in metadata.modules.values()):
        raise BaseModelError(
            f"{folder}: already quantized, {metadata.bits_per_weight:.2f} bits per weight; load_in={load_in} is for an "
            "unquantized base. Leave it out, or write other bits with `optiq convert`"
        )
    mode = "mxfp4" if load_in == "mxfp4" else "affine"
    bits = 4 if mode == "mxfp4" else int(load_in.removesuffix("bit"))
    groups = _MX_GROUPS if mode == "mxfp4" else _AFFINE_GROUPS
    predicate = getattr(model, "quant_predicate", None)
    chosen: dict[str, dict[str, Any]] = {}
    left = 0
    for path, module in tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module):
        if not hasattr(module, "to_quantized") or (predicate is not None and not predicate(path, module)):
            continue
        group = next((g for g in groups if module.weight.shape[-1] % g == 0), None)
        if group is None:
            left += 1
        else:
            chosen[path] = {"group_size": group, "bits": bits, "mode": mode}
    nn.quantize(model, class_predicate=lambda path, _: chosen.get(path, False))
    modules = {
        **metadata.modules,
        **{path: ModuleBits(bits, settings["group_size"], mode) for path, settings in chosen.items()},
    }
    changed = msgspec.structs.replace(
        metadata, modules=modules, bits_per_weight=round(compute_bits_per_weight(model), 4)
    )
    return changed, _notes(load_in, Counter(s["group_size"] for s in chosen.values()), left, groups[0])


def _notes(load_in: str, counts: Counter[int], left: int, wanted: int) -> tuple[str, ...]:
    notes = [
        f"{count} modules are loaded in {load_in} in groups of {group}: their rows do not divide by {wanted}"
        for group, count in sorted(counts.items(), reverse=True)
        if group != wanted
    ]
    if left:
        notes.append(f"{left} modules stay in float: their rows do not divide by {_MX_GROUPS[0]}")
    return tuple(notes)
