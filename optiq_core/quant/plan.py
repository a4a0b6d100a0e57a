"""From a source and a target to an allocation: options, sensitivity, budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from mlx.utils import tree_flatten

from optiq_core.errors import QuantizationError
from optiq_core.quant.allocate import Allocation, Choice, Item, allocate_greedy, protect
from optiq_core.quant.calibration import TokenText
from optiq_core.quant.exact import allocate_exact
from optiq_core.quant.gradient import estimate_kl
from optiq_core.quant.modules import PROTECTED, QuantTarget, find_quant_targets, protected_paths
from optiq_core.quant.options import Option, parse_candidates
from optiq_core.quant.partial import PartialResults
from optiq_core.quant.sensitivity import Method, Progress, Sensitivity, measure_kl
from optiq_core.quant.source import Source
from optiq_core.quant.static import rate

Allocator = Literal["greedy", "exact"]
ALLOCATORS: tuple[Allocator, ...] = get_args(Allocator)

TOLERANCE = 0.05
# With less room than this above the cheapest candidates, coarser groups are worth their error.
_TIGHT = 0.25
_DEFAULT_GROUP = 64
_COARSE_GROUP = 128


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """What a conversion is asked for.

    Attributes:
        target_bpw: bits per weight of the whole file: embeddings, scales and unquantized tensors count.
        candidate_bits: for example ``4,8`` or ``3,mxfp4,6``.
        group_sizes: weights that share a scale; None is 64, with coarser groups beside it where the target is tight.
        method: how sensitivity is found.
        allocator: how the budget is spent.
        protect: see :func:`optiq_core.quant.modules.protected_paths`.
    """

    target_bpw: float
    candidate_bits: str = "4,8"
    group_sizes: tuple[int, ...] | None = None
    method: Method = "kl"
    allocator: Allocator = "greedy"
    protect: tuple[str, ...] = PROTECTED

    @property
    def arguments(self) -> tuple[str, ...]:
        """What `optiq convert` takes for this, beside the model and the output."""
        groups = () if self.group_sizes is None else ("--group-size", ",".join(map(str, self.group_sizes)))
        protected = [part for pattern in self.protect or ("none",) for part in ("--protect", pattern)]
        return (
            *("--target-bpw", f"{self.target_bpw:g}", "--candidate-bits", self.candidate_bits, *groups),
            *("--method", self.method, "--allocator", self.allocator, *protected),
        )


@dataclass(frozen=True)
class Plan:
    """What every module gets, and why.

    Attributes:
        targets: the modules, with the options that each had.
        sensitivity: what each option costs.
        allocation: what each module gets.
        achieved_bpw: bits per weight of the file to come.
        parameters: values of all tensors.
        notes: one sentence each.
    """

    targets: tuple[QuantTarget, ...]
    sensitivity: Sensitivity
    allocation: Allocation
    achieved_bpw: float
    parameters: int
    notes: tuple[str, ...]

    @property
    def options(self) -> dict[str, Option]:
        """Chosen option by module path."""
        return {
            t.path: next(o for o in t.options if o.label == self.allocation.chosen[t.path].label) for t in self.targets
        }


def plan(
    source: Source,
    settings: PlanSettings,
    text: TokenText | None,
    *,
    progress: Progress = lambda share, what: None,
) -> Plan:
    """Measure a source and allocate bits.

    Args:
        source: its model is unchanged afterwards.
        settings: what is asked for.
        text: to measure on; not needed for the static method.
        progress: told how far the measurement is.

    Raises:
        QuantizationError: settings that cannot be met.
    """
    targets, notes = _targets(source, settings)
    protected = protected_paths(targets, settings.protect)
    size = Footprint.of(source, targets)
    budget = _budget(targets, size, settings)
    sensitivity = sensitivity_of(source, targets, settings.method, text, progress)
    items = items_of(targets, sensitivity, size.scale_bits)
    kept, unprotected = protect(items, budget, protected)
    allocate = allocate_exact if settings.allocator == "exact" else allocate_greedy
    allocation = replace(allocate(kept, budget), unprotected=unprotected)
    achieved = (allocation.cost + size.other_bits) / size.parameters
    if unprotected:
        enough = size.bpw(sum(i.choices[-1 if i.path in protected else 0].cost for i in items))
        notes.append(
            f"{len(unprotected)} of {len(protected)} protected modules do not fit into the target at the best "
            "candidate and compete like all others; all of them fit from "
            f"{math.ceil(enough * 100) / 100:g} bits per weight on"
        )
    if abs(achieved - settings.target_bpw) > TOLERANCE:
        notes.append(_why_missed(allocation, items, achieved, settings.target_bpw))
    return Plan(tuple(targets), sensitivity, allocation, achieved, size.parameters, tuple(notes))


@dataclass(frozen=True)
class Footprint:
    """What a model takes on disk besides the weights to be quantized.

    Attributes:
        parameters: values of all tensors.
        other_bits: of tensors that stay in float.
        scale_bits: of a scale.
    """

    parameters: int
    other_bits: int
    scale_bits: int

    @classmethod
    def of(cls, source: Source, targets: Sequence[QuantTarget]) -> Footprint:
        """Count a source's tensors."""
        scale_bits = source.store.size * 8
        total = sum(v.size for _, v in tree_flatten(source.model.parameters()))
        rest = total - sum(t.size for t in targets)
        return cls(total, rest * scale_bits, scale_bits)

    def bpw(self, weights: int) -> float:
        """Bits per weight with this many bits of quantized weights."""
        return (weights + self.other_bits) / self.parameters


def sensitivity_of(
    source: Source, targets: Sequence[QuantTarget], method: Method, text: TokenText | None, progress: Progress
) -> Sensitivity:
    """Find what every option of every module costs, from the cache where it is known.

    Raises:
        QuantizationError: the method needs a text, and there is none.
    """
    if method == "static":
        return rate(targets, store=source.store, progress=progress)
    if text is None:
        raise QuantizationError(f"method {method}: needs a calibration text")
    partial = PartialResults("1", source.content, text.digest, method, str(source.store))
    if method == "kl":
        return measure_kl(source.model, targets, text, store=source.store, partial=partial, progress=progress)
    known = {t.path: {o.label: partial.get(t.path, o.label) for o in t.options} for t in targets}
    if any(value is None for own in known.values() for value in own.values()):
        found = estimate_kl(source.model, targets, text, store=source.store, progress=progress)
        partial.add(found)
        return found
    return {path: {label: value or 0.0 for label, value in own.items()} for path, own in known.items()}


def items_of(targets: Sequence[QuantTarget], sensitivity: Sensitivity, scale_bits: int) -> list[Item]:
    """Return the knapsack's items, choices cheapest first."""
    items = []
    for target in targets:
        kl = sensitivity[target.path]
        choices = [Choice(o.label, o.stored_bits(target.size, scale_bits), kl[o.label]) for o in target.options]
        items.append(Item(target.path, tuple(sorted(choices, key=lambda c: (c.cost, c.kl)))))
    return items


def least_bits(targets: Sequence[QuantTarget], scale_bits: int) -> int:
    """Bits with the cheapest option everywhere."""
    return sum(min(o.stored_bits(t.size, scale_bits) for o in t.options) for t in targets)


def reference_label(targets: Sequence[QuantTarget]) -> str:
    """Return the cheapest option that most modules have: at this one they are compared."""
    labels = [o.label for t in targets for o in t.options]
    most = max(labels.count(label) for label in set(labels))
    return next(o.label for t in targets for o in t.options if labels.count(o.label) == most)


def _targets(source: Source, settings: PlanSettings) -> tuple[list[QuantTarget], list[str]]:
    groups = settings.group_sizes or (_DEFAULT_GROUP,)
    options = parse_candidates(settings.candidate_bits, groups)
    targets = find_quant_targets(source.model, options)
    if settings.group_sizes is not None:
        return targets, []
    size = Footprint.of(source, targets)
    room = settings.target_bpw - size.bpw(least_bits(targets, size.scale_bits))
    affine = [o for o in options if o.mode == "affine"]
    if room >= _TIGHT or not affine:
        return targets, []
    coarse = replace(affine[0], group_size=_COARSE_GROUP)
    wider = tuple(sorted({*options, coarse}, key=lambda o: (o.stored_bits(128, size.scale_bits), o)))
    note = (
        f"in groups of {_DEFAULT_GROUP} the cheapest candidates alone take {settings.target_bpw - room:.2f} bits per "
        f"weight with their scales: {coarse.label} is a candidate too, where rows divide by {_COARSE_GROUP}"
    )
    return find_quant_targets(source.model, wider), [note]


def _budget(targets: Sequence[QuantTarget], size: Footprint, settings: PlanSettings) -> int:
    """Bits for the weights; the cheapest candidates are allowed to exceed the target within the tolerance."""
    budget = int(settings.target_bpw * size.parameters) - size.other_bits
    least = least_bits(targets, size.scale_bits)
    if size.bpw(least) > settings.target_bpw + TOLERANCE:
        raise QuantizationError(
            f"--target-bpw {settings.target_bpw:g}: the cheapest candidates already take {size.bpw(least):.2f} bits "
            f"per weight with their scales; raise it, or add lower --candidate-bits or a larger --group-size"
        )
    return max(budget, least)


def _why_missed(allocation: Allocation, items: Sequence[Item], achieved: float, target: float) -> str:
    best = all(allocation.chosen[item.path].cost == item.choices[-1].cost for item in items)
    if best:
        return f"{achieved:.2f} bits per weight, not {target:g}: every module already has its best candidate"
    return (
        f"{achieved:.2f} bits per weight, not {target:g}: no upgrade that is left fits into the rest; "
        "more --candidate-bits give finer steps"
    )
