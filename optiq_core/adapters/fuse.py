"""Adds an adapter into the base's own weights, and says how much of it survives there.

A quantized weight has few values to choose from, and a small change falls between them: most of it is lost when the
sum is quantized again. The report measures that; serving the adapter beside the base loses nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..errors import AdapterError
from ..files import staged_folder
from .arrays import ModuleArrays, read_arrays
from .bank import linear_dims
from .format import read_manifest, validate_against_base
from .manifest import ModuleShape
from .tensors import base_weight

# Measured on 4-bit weights, by the standard deviation of lora_b.
KNOWN_LOSSES = {1e-3: 0.02, 1e-2: 0.12, 5e-2: 0.90}


@dataclass(frozen=True)
class FuseReport:
    """How much of an adapter is in the fused weights.

    Attributes:
        modules: adapted modules.
        quantized: those among them whose sum was quantized again.
        kept_cosine: mean cosine between the change that was wanted and the one that is there; 1 is all of it.
        worst_cosine: the smallest of any module.
        worst_module: where that is.
    """

    modules: int
    quantized: int
    kept_cosine: float
    worst_cosine: float
    worst_module: str

    @property
    def warning(self) -> str:
        """What a person must know before serving the result; empty if nothing was quantized again."""
        if not self.quantized:
            return ""
        known = ", ".join(f"{cosine:.2f} at {sigma:g}" for sigma, cosine in KNOWN_LOSSES.items())
        return (
            f"quantizing again keeps the change only in part: cosine {self.kept_cosine:.2f} of 1 on average, "
            f"{self.worst_cosine:.2f} in {self.worst_module}. Small adapters vanish (4 bits, cosine by the standard "
            f"deviation of lora_b: {known}). Serve it unfused, or fuse with the adapted modules kept as floats."
        )


def fuse_adapter(
    base: Path,
    adapter: Path,
    target: Path,
    *,
    keep_float: bool = False,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> FuseReport:
    """Write the base with an adapter added into its weights, as an mlx-lm folder.

    Args:
        base: an mlx-lm model folder.
        adapter: an adapter folder for it.
        target: folder to write.
        keep_float: keep adapted modules as float16 in place of quantizing them again.
        progress: told of every tenth module.

    Raises:
        AdapterError: the adapter does not fit the base, or adapts something other than linear modules.
        FileExistsError: ``target`` exists and ``overwrite`` is false.
    """
    from mlx_lm.utils import load_model, load_tokenizer, save

    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists")
    model, config = load_model(base, lazy=True)
    linears = {path: m for path, m in model.named_modules() if isinstance(m, nn.Linear | nn.QuantizedLinear)}
    manifest = read_manifest(adapter)
    for module in manifest.modules:
        if module.experts:
            raise AdapterError(
                "UNSUPPORTED_KIND",
                "adapters of stacks of experts are served, not fused",
                file=manifest.weights_file,
                tensor=module.a,
                expected="linear modules",
                found=f"{module.experts} experts",
            )
    validate_against_base(manifest, {path: ModuleShape(*linear_dims(module)) for path, module in linears.items()})
    cosines: dict[str, float] = {}
    modules = read_arrays(adapter, manifest)
    for number, (path, arrays) in enumerate(modules.items()):
        if number % 10 == 0:
            progress(f"{number} of {len(modules)} modules")
        linear = linears[path]
        wanted = _wanted(linear, arrays)
        if isinstance(linear, nn.QuantizedLinear) and not keep_float:
            add = _add_to_biases if _same_in_groups(linear, arrays) else _add_quantized
            cosines[path] = add(linear, wanted)
        else:
            _add_float(model, path, linear, wanted)
            _mark_float(config, path)
    with staged_folder(target, overwrite=overwrite) as staging:
        save(staging, base, model, load_tokenizer(base), config)
        for extra in staging.iterdir():
            if extra.is_dir():
                shutil.rmtree(extra)
    worst = min(cosines, key=lambda path: cosines[path], default="")
    return FuseReport(
        modules=len(modules),
        quantized=len(cosines),
        kept_cosine=float(np.mean(list(cosines.values()))) if cosines else 1.0,
        worst_cosine=cosines.get(worst, 1.0),
        worst_module=worst,
    )


def _wanted(linear: nn.Module, arrays: ModuleArrays) -> mx.array:
    """The change of the weight [out, in] that the adapter stands for, in float32."""
    change = arrays.scale * (mx.array(arrays.a) @ mx.array(arrays.b)).T
    if arrays.magnitude is None:
        return change
    weight = base_weight(linear)
    merged = weight + change
    return mx.array(arrays.magnitude)[:, None] * merged / mx.linalg.norm(merged, axis=1, keepdims=True) - weight


def _same_in_groups(linear: nn.QuantizedLinear, arrays: ModuleArrays) -> bool:
    """Whether the change is one number for each quantization group, as QA-LoRA's is (arXiv:2309.14717)."""
    if linear.get("biases") is None or arrays.magnitude is not None:
        return False
    groups = arrays.a.reshape(-1, linear.group_size, arrays.rank)
    return bool((groups == groups[:, :1]).all())


def _add_to_biases(linear: nn.QuantizedLinear, wanted: mx.array) -> float:
    """Add a change that is the same in each group: the integers and scales stay, nothing is rounded to a grid."""
    before = base_weight(linear)
    # In float32: a bias rounded to 16 bits would move all of its group.
    linear.biases = linear.biases.astype(mx.float32) + wanted[:, :: linear.group_size]
    linear.scales = linear.scales.astype(mx.float32)
    mx.eval(linear.parameters())
    return _cosine(base_weight(linear) - before, wanted)


def _cosine(there: mx.array, wanted: mx.array) -> float:
    norms = mx.linalg.norm(there) * mx.linalg.norm(wanted)
    cosine: Any = ((there * wanted).sum() / mx.maximum(norms, 1e-30)).item()
    return float(cosine)


def _add_quantized(linear: nn.QuantizedLinear, wanted: mx.array) -> float:
    before = base_weight(linear)
    dtype = linear.scales.dtype
    affine = linear.get("biases") is not None
    quantized = mx.quantize(before + wanted, group_size=linear.group_size, bits=linear.bits, mode=linear.mode)
    linear.weight = quantized[0]
    linear.scales = quantized[1].astype(dtype) if affine else quantized[1]
    if affine:
        linear.biases = quantized[2].astype(dtype)
    mx.eval(linear.parameters())
    return _cosine(base_weight(linear) - before, wanted)


def _add_float(model: nn.Module, path: str, linear: nn.Module, wanted: mx.array) -> None:
    from mlx.utils import tree_unflatten

    weight = base_weight(linear) + wanted
    if not mx.isfinite(weight).all().item():
        raise AdapterError("NOT_FINITE", "the sum with the base has NaN or infinite values", tensor=path)
    dtype = mx.float16 if isinstance(linear, nn.QuantizedLinear) else linear.weight.dtype
    fused = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in linear)
    fused.weight = weight.astype(dtype)
    if "bias" in linear:
        fused.bias = linear.bias
    mx.eval(fused.parameters())
    model.update_modules(tree_unflatten([(path, fused)]))


def _mark_float(config: dict[str, Any], path: str) -> None:
    for key in ("quantization", "quantization_config"):
        if isinstance(config.get(key), dict):
            config[key][path] = False
