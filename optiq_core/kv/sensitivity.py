"""What compressing one layer's keys and values does to a model's output, and which layer gets which bits.

One layer's cache is compressed, all others stay float, and the KL divergence of the next-token distributions from the
float caches' is averaged over all positions of the text, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..errors import KVConfigError, QuantizationError
from ..quant.allocate import Choice, Item, allocate_greedy
from ..quant.calibration import TokenText
from ..quant.divergence import Reference
from ..quant.partial import PartialResults
from ..train.loss import number
from .config import LayerCache, Method, plain
from .factory import CachePlan, plan_caches

# Told the share of the work that is done, from 0 to 1, and what is being done.
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer, each candidate's KL in nats per token, by bits."""

    layer_idx: int
    kl: dict[float, float]


def measure_layers(
    model: nn.Module,
    layers: Sequence[int],
    candidates: Sequence[float],
    text: TokenText,
    *,
    method: Method,
    group_size: int,
    centers: Mapping[int, mx.array] | None = None,
    partial: PartialResults | None = None,
    progress: Progress = lambda share, what: None,
) -> list[LayerSensitivity]:
    """Measure every candidate in every layer, one layer at a time.

    Args:
        model: an mlx-lm model.
        layers: layers whose caches can be compressed.
        candidates: bits.
        text: to measure on; each of its sequences is a context of its own.
        method: of the caches.
        group_size: of affine and rotated caches.
        centers: see :func:`optiq_core.kv.factory.plan_caches`.
        partial: results of an earlier run are taken from it, and new ones are added one by one.
        progress: told how far it is.

    Raises:
        KVConfigError: a layer cannot have a candidate.
    """
    work = [(layer, bits) for layer in layers for bits in candidates]
    plans = {
        (layer, bits): plan_caches(model, [LayerCache(layer, bits, group_size, method)], centers)
        for layer, bits in work
    }
    found: dict[tuple[int, float], float] = {}
    references: list[tuple[mx.array, Reference]] = []
    for done, (layer, bits) in enumerate(work):
        known = partial.get(str(layer), _label(bits)) if partial else None
        if known is None:
            if not references:
                progress(0.0, "running with float caches")
                references = float_references(model, text)
            progress(done / len(work), f"layer {layer}, {plain(bits)} bits")
            known = cached_kl(model, plans[layer, bits], references)
            if partial is not None:
                partial.add({str(layer): {_label(bits): known}})
        found[layer, bits] = known
    progress(1.0, "measured")
    return [LayerSensitivity(layer, {bits: found[layer, bits] for bits in candidates}) for layer in layers]


def allocate_layers(
    model: nn.Module,
    measured: Sequence[LayerSensitivity],
    target_bits: float,
    *,
    method: Method,
    group_size: int,
) -> tuple[LayerCache, ...]:
    """Give each layer its bits: most KL drop per added bit first, until the mean over all values meets the target.

    Args:
        model: the model that was measured.
        measured: KL of each layer and candidate.
        target_bits: mean bits of a cached value, scales not counted.
        method: of the caches.
        group_size: of affine and rotated caches.

    Raises:
        KVConfigError: the cheapest candidates already take more.
    """
    values = {}
    for layer in measured:
        # What differs between layers is their number of KV heads and channels.
        alone = plan_caches(model, [LayerCache(layer.layer_idx, max(layer.kl), group_size, method)])
        values[layer.layer_idx] = alone.values_of(layer.layer_idx)
    # The knapsack counts whole bits: tenths of a bit per value cover 2.5 and 3.5.
    items = [
        Item(
            str(layer.layer_idx),
            tuple(Choice(_label(b), int(b * 10) * values[layer.layer_idx], layer.kl[b]) for b in sorted(layer.kl)),
        )
        for layer in measured
    ]
    budget = round(target_bits * 10 * sum(values.values()))
    try:
        allocation = allocate_greedy(items, budget)
    except QuantizationError:
        least = min(bits for layer in measured for bits in layer.kl)
        raise KVConfigError(
            f"the target of {target_bits:g} bits is below the lowest candidate, {plain(least)}; "
            "raise --target-bits or add a lower one to --candidate-bits"
        ) from None
    chosen = {int(path): float(choice.label) for path, choice in allocation.chosen.items()}
    return tuple(LayerCache(layer, bits, group_size, method) for layer, bits in sorted(chosen.items()))


def mean_bits(model: nn.Module, layers: Sequence[LayerCache]) -> float:
    """Return the mean bits of a cached value of these layers, scales not counted."""
    plan = plan_caches(model, layers)
    values = {layer.layer_idx: plan.values_of(layer.layer_idx) for layer in layers}
    return sum(layer.bits * values[layer.layer_idx] for layer in layers) / max(sum(values.values()), 1)


def float_references(model: nn.Module, text: TokenText) -> list[tuple[mx.array, Reference]]:
    """Run the text with the model's own caches, one sequence at a time."""
    plan = CachePlan("float")
    return [(tokens, Reference.of(model(tokens, cache=plan(model)))) for tokens in text.batches(1)]


def cached_kl(model: nn.Module, plan: CachePlan, references: Sequence[tuple[mx.array, Reference]]) -> float:
    """Mean KL of a model with these caches from the references, in nats per token."""
    parts: list[Any] = [reference.kl(model(tokens, cache=plan(model))) for tokens, reference in references]
    return number(mx.concatenate(parts).mean())


def _label(bits: float) -> str:
    return f"{plain(bits)}"
