"""Makes one LoRA adapter of several: the weighted sum of what they add, exact. For DoRA see :mod:`.merge_dora`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import AdapterError
from .arrays import ModuleArrays, read_arrays
from .format import MAX_RANK, read_manifest
from .lora_config import LoraConfig
from .write import Tensor, write_adapter

MAX_WEIGHT = 1000.0


def merge_adapters(parts: Sequence[tuple[Path, float]], target: Path, *, overwrite: bool = False) -> LoraConfig:
    """Write the adapter that adds ``sum_i w_i s_i (A_i B_i)``.

    The columns of all ``A_i`` go side by side and the rows of all ``w_i s_i B_i`` below each other: ranks add up, and
    nothing is approximated.

    Args:
        parts: adapter folders and their weights.
        target: folder to write.

    Raises:
        AdapterError: a folder is no adapter or a DoRA one, whose sum needs the base, or the ranks add up to too much.
        FileExistsError: ``target`` exists and ``overwrite`` is false.
    """
    check_parts(parts)
    base_models = []
    by_path: dict[str, list[tuple[ModuleArrays, float]]] = {}
    for folder, weight in parts:
        manifest = read_manifest(folder)
        if manifest.kind == "dora":
            raise AdapterError(
                "UNSUPPORTED_KIND",
                "the sum with a DoRA adapter depends on the base's weights; merge_dora takes them",
                file=manifest.weights_file,
                expected="lora",
                found=manifest.kind,
            )
        base_models.append(manifest.base_model)
        for path, module in read_arrays(folder, manifest).items():
            by_path.setdefault(path, []).append((module, weight))
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for path, modules in sorted(by_path.items()):
        _check(path, modules)
        tensors[f"{path}.lora_a"] = np.concatenate([module.a for module, _ in modules], axis=1)
        tensors[f"{path}.lora_b"] = np.concatenate([module.b * (weight * module.scale) for module, weight in modules])
        ranks[path] = int(tensors[f"{path}.lora_a"].shape[1])
    config = LoraConfig(
        base_model=base_models[0] if len(set(base_models)) == 1 else "",
        rank=max(ranks.values()),
        rank_scaling="merge",
        scale=1.0,
        dropout=0.0,
        ranks=ranks,
    )
    return write_adapter(target, tensors, config, overwrite=overwrite)


def check_parts(parts: Sequence[tuple[Path, float]]) -> None:
    """Refuse a merge of fewer than two adapters, or with a weight that is out of range.

    Raises:
        AdapterError: names it.
    """
    if len(parts) < 2:
        raise AdapterError("BAD_MERGE", "a merge takes two adapters or more", expected=">= 2", found=str(len(parts)))
    for _, weight in parts:
        if not (math.isfinite(weight) and abs(weight) <= MAX_WEIGHT):
            raise AdapterError(
                "BAD_MERGE",
                "the weight is out of range",
                expected=f"-{MAX_WEIGHT:g} to {MAX_WEIGHT:g}",
                found=str(weight),
            )


def _check(path: str, modules: Sequence[tuple[ModuleArrays, float]]) -> None:
    shapes = {(module.a.shape[0], module.b.shape[1]) for module, _ in modules}
    if len(shapes) > 1:
        raise AdapterError(
            "SHAPE_MISMATCH",
            "the adapters were made for different bases",
            tensor=path,
            expected="one shape",
            found=str(sorted(shapes)),
        )
    rank = sum(module.rank for module, _ in modules)
    if rank > MAX_RANK:
        raise AdapterError(
            "BAD_RANK", "the ranks add up to too much", tensor=path, expected=f"<= {MAX_RANK}", found=str(rank)
        )
