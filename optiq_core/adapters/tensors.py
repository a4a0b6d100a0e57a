"""Loads the tensors of a validated adapter folder into the form in which the bank adds them.

With ``W`` the base's weight [out, in], ``s`` the adapter's scale and ``B``, ``A`` its matrices, LoRA adds
``x A (s B)``. DoRA (arXiv:2402.09353) replaces the output by ``g * (x W^T + x A (s B))`` with
``g = m / ||W + s (A B)^T||`` per output row, which is the base's output plus ``(g - 1) * x W^T + x A (s g B)``: the
same form with one more vector. So a per-request factor on everything that is added blends both kinds exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..base.blocked import BlockedEmbedding, BlockedLinear
from ..errors import AdapterError
from .kinds import LOOKUP
from .manifest import AdapterManifest, ModuleDelta

# A copy of the base's weight is rounded to 16 bits at most; quantization moves a weight by more than training does.
_SAME_WEIGHT = 0.01
# Products of two such values with any activation are finite in float32.
_LARGEST = 1e12


@dataclass(frozen=True)
class DeltaTensors:
    """What one adapter adds to one module.

    Attributes:
        a: [in, rank], lying in memory by ranks; [experts, in, rank] for a stack of experts.
        b: [rank, out], the scale (and DoRA's gain) folded in; [experts, rank, out] for a stack.
        gain: [out], DoRA's ``g - 1``; None for LoRA.
    """

    a: mx.array
    b: mx.array
    gain: mx.array | None


def load_tensors(
    folder: Path, manifest: AdapterManifest, modules: dict[str, nn.Module], dtype: mx.Dtype
) -> dict[str, DeltaTensors]:
    """Read, check and evaluate an adapter's tensors; safe to call beside a running engine.

    Args:
        folder: the adapter folder that the manifest was read from.
        manifest: a manifest that was validated against the base.
        modules: the base's modules by dotted path.
        dtype: type in which the bank computes.

    Returns:
        What the adapter adds by module path; ``@lookup`` follows an embedding's whose tied head it leaves alone.

    Raises:
        AdapterError: a tensor is not finite, or a copy of the base's weight in the file is another base's.
    """
    raw: Any = mx.load(str(folder / manifest.weights_file))
    # Largest value of every tensor by name, evaluated together with all else. Rows of one batch share products, and
    # zero times infinity is NaN: nothing may overflow, the scale included.
    largest: list[tuple[str, mx.array]] = []
    for spec in manifest.modules:
        if spec.base_copy:
            _check_copy(raw[spec.base_copy], spec, modules[spec.path], manifest.weights_file)
    deltas = {d.path + LOOKUP * d.lookup: _delta(raw, d, modules[d.path], dtype, largest) for d in manifest.modules}
    mx.eval([t for d in deltas.values() for t in (d.a, d.b, d.gain) if t is not None], [value for _, value in largest])
    for name, value in largest:
        if not value.item() <= _LARGEST:  # type: ignore[operator]
            raise AdapterError(
                "NOT_FINITE",
                "the tensor's values are not finite, or overflow with the adapter's scale",
                file=manifest.weights_file,
                tensor=name,
                expected=f"finite numbers up to {_LARGEST:g}",
            )
    return deltas


def _check_copy(copy: mx.array, spec: ModuleDelta, module: nn.Module, file: str) -> None:
    """Refuse a copy of the base's weight that is not this base's: the adapter was trained on another function."""
    shape = (spec.input_dims, spec.output_dims) if spec.lookup else (spec.output_dims, spec.input_dims)
    difference: Any = 0.0
    if copy.shape == shape and not isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
        weight = base_weight(module)
        difference = (mx.linalg.norm(copy.astype(mx.float32) - weight) / mx.linalg.norm(weight)).item()
    if copy.shape != shape or not difference <= _SAME_WEIGHT:
        raise AdapterError(
            "BASE_CHANGED",
            "the file's copy of the base's weight is not the base's: a resized or trained layer is not served",
            file=file,
            tensor=spec.base_copy,
            expected=f"the base's own weight, {list(shape)}",
            found=f"{list(copy.shape)}, relative difference {difference:.3g}",
        )


def _delta(
    raw: dict[str, mx.array],
    spec: ModuleDelta,
    linear: nn.Module,
    dtype: mx.Dtype,
    largest: list[tuple[str, mx.array]],
) -> DeltaTensors:
    def read(name: str) -> mx.array:
        tensor = raw[name].astype(mx.float32)
        # mlx-lm keeps the matrices of experts as PEFT does those of linear modules.
        swapped = (spec.transposed or spec.experts) and tensor.ndim > 1
        return tensor.swapaxes(-1, -2) if swapped else tensor

    def bound(name: str, tensor: mx.array) -> None:
        largest.append((name, mx.abs(tensor).max()))

    # Columns and rows beyond the true rank are zero padding for stock mlx-lm.
    a = read(spec.a)[..., : spec.rank]
    b = read(spec.b)[..., : spec.rank, :] * spec.scale
    bound(spec.a, a.astype(dtype))
    gain = None
    if spec.dora:
        magnitude = read(spec.magnitude)
        # The gain mixes all three: each is looked at before it, so that the right one is named.
        bound(spec.b, b)
        bound(spec.magnitude, magnitude)
        merged = base_weight(linear) + (a @ b).T
        factor = magnitude / mx.linalg.norm(merged, axis=1)
        b = b * factor
        gain = (factor - 1).astype(dtype)
        bound(spec.magnitude, gain)
    b = mx.contiguous(b.astype(dtype))
    bound(spec.b, b)
    return DeltaTensors(mx.contiguous(a.swapaxes(-1, -2).astype(dtype)).swapaxes(-1, -2), b, gain)


def combine(parts: Sequence[tuple[Mapping[str, DeltaTensors], float]]) -> dict[str, DeltaTensors]:
    """Return the weighted sum of several adapters as one: what it adds is the sum of what they add.

    ``sum_i w_i x A_i B_i`` is ``x A B`` with the columns of all ``A_i`` side by side and the rows of all ``w_i B_i``
    below each other, so the ranks add up and nothing is approximated.

    Args:
        parts: tensors of an adapter by module path, and its weight.
    """
    by_path: dict[str, list[tuple[DeltaTensors, float]]] = {}
    for tensors, weight in parts:
        for path, delta in tensors.items():
            by_path.setdefault(path, []).append((delta, weight))
    return {path: _combine_module(deltas) for path, deltas in by_path.items()}


def _combine_module(deltas: list[tuple[DeltaTensors, float]]) -> DeltaTensors:
    gains = [weight * delta.gain for delta, weight in deltas if delta.gain is not None]
    return DeltaTensors(
        a=mx.concatenate([delta.a.swapaxes(-1, -2) for delta, _ in deltas], axis=-2).swapaxes(-1, -2),
        b=mx.concatenate([weight * delta.b for delta, weight in deltas], axis=-2),
        gain=sum(gains[1:], gains[0]) if gains else None,
    )


def base_weight(linear: nn.Module) -> mx.array:
    """Return a linear module's weight [out, in], or an embedding's, in float32, dequantized if need be."""
    if isinstance(linear, nn.QuantizedLinear | nn.QuantizedEmbedding):
        biases = linear.get("biases")
        return mx.dequantize(
            linear.weight,
            linear.scales.astype(mx.float32) if biases is not None else linear.scales,
            None if biases is None else biases.astype(mx.float32),
            group_size=linear.group_size,
            bits=linear.bits,
            mode=linear.mode,
        ).astype(mx.float32)
    weight: mx.array = linear.dense_weight if isinstance(linear, BlockedLinear | BlockedEmbedding) else linear.weight
    return weight.astype(mx.float32)
