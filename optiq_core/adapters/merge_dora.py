"""Makes one DoRA adapter of several adapters, DoRA ones among them: the weighted sum of what they add, exact.

DoRA's output is ``g * (x W^T + x A B)`` with ``g = m / ||W + (A B)^T||`` per output row (scales folded into ``B``), so
part ``i`` adds ``(g_i - 1) * x W^T + x A_i (g_i B_i)``. The sum of what all parts add with weights ``w_i`` is

    (G - 1) * x W^T + x A B      with G = 1 + sum_i w_i (g_i - 1), A = [A_i], B = [w_i g_i B_i],

ranks side by side, ``g_i = 1`` for LoRA parts. That is a DoRA adapter again: ``A``, ``B / G`` and the magnitude
``G * ||W + (A B / G)^T||``, whose gain is ``G``. Where ``G`` is 0 there is none: DoRA multiplies what it adds by the
gain, so it cannot take the base's row away and add something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..errors import AdapterError
from .format import MAX_RANK, read_manifest
from .lora_config import LoraConfig
from .manifest import AdapterManifest
from .merge import check_parts
from .tensors import DeltaTensors, base_weight, combine, load_tensors
from .write import Tensor, write_adapter

# Below this gain, dividing by it would lose the sum's low bits in float32.
SMALLEST_GAIN = 1e-3


def merge_dora(
    parts: Sequence[tuple[Path, float]], modules: dict[str, nn.Module], target: Path, *, overwrite: bool = False
) -> LoraConfig:
    """Write the DoRA adapter that adds the weighted sum of what the parts add.

    Args:
        parts: adapter folders, validated against the base, and their weights.
        modules: the base's linear modules by dotted path.
        target: folder to write.

    Raises:
        AdapterError: an adapter of something other than linear modules, ranks that add up to too much, or a gain of
            the sum that is 0.
        FileExistsError: ``target`` exists and ``overwrite`` is false.
    """
    check_parts(parts)
    manifests = [read_manifest(folder) for folder, _ in parts]
    for manifest in manifests:
        _check_linear(manifest)
    loaded = [
        (load_tensors(folder, manifest, modules, mx.float32), weight)
        for (folder, weight), manifest in zip(parts, manifests, strict=True)
    ]
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for path, delta in sorted(combine(loaded).items()):
        ranks[path] = int(delta.a.shape[1])
        if ranks[path] > MAX_RANK:
            raise AdapterError(
                "BAD_RANK",
                "the ranks add up to too much",
                tensor=path,
                expected=f"<= {MAX_RANK}",
                found=str(ranks[path]),
            )
        for leaf, value in zip(("lora_a", "lora_b", "m"), _as_dora(path, delta, modules[path]), strict=True):
            tensors[f"{path}.{leaf}"] = np.array(value)
    names = {manifest.base_model for manifest in manifests}
    config = LoraConfig(
        base_model=names.pop() if len(names) == 1 else "",
        rank=max(ranks.values()),
        rank_scaling="merge",
        scale=1.0,
        dropout=0.0,
        ranks=ranks,
        method="dora",
    )
    return write_adapter(target, tensors, config, overwrite=overwrite)


def _as_dora(path: str, delta: DeltaTensors, linear: nn.Module) -> tuple[mx.array, mx.array, mx.array]:
    """``lora_a`` [in, rank], ``lora_b`` [rank, out] and ``m`` [out] that add this delta."""
    gain = 1 + delta.gain if delta.gain is not None else mx.ones(delta.b.shape[1])
    gains = np.array(gain)
    smallest = int(np.argmin(np.abs(gains)))
    if abs(found := float(gains[smallest])) < SMALLEST_GAIN:
        raise AdapterError(
            "MERGE_SINGULAR",
            f"the weighted gains cancel in output row {smallest}, where no DoRA adapter adds what the sum adds; "
            "use other weights, or blend per request",
            tensor=path,
            expected=f"|1 + sum of w (g - 1)| >= {SMALLEST_GAIN:g}",
            found=f"{found:.3g}",
        )
    b = delta.b / gain
    return delta.a, b, gain * mx.linalg.norm(base_weight(linear) + (delta.a @ b).T, axis=1)


def _check_linear(manifest: AdapterManifest) -> None:
    for module in manifest.modules:
        if module.experts or module.lookup:
            raise AdapterError(
                "UNSUPPORTED_KIND",
                "adapters of embeddings and of stacks of experts do not merge with DoRA; blend them per request",
                file=manifest.weights_file,
                tensor=module.a,
                expected="linear modules",
                found=module.path,
            )
