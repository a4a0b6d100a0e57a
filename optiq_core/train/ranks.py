"""How much rank each adapted module gets. No MLX here.

Every scheme gives a module a weight, and the module's rank is ``ceil(rank * weight)``:

=========  ==========================================================================================================
constant   1
by_bits    bits / 4: a module that the base keeps at 8 bits, because it is sensitive, gets twice the rank of one at 4
by_kl      KL divergence that the base's conversion measured for the module over the median one, within [0.5, 2]
linear     from 0.5 in the lowest adapted block to 1.5 in the highest
attention  1 in attention, 0.5 elsewhere
ffn        0.5 in attention, 1 elsewhere
gradient   norm of the loss's gradient at the module over the median one, within [0.5, 2], from a few probe batches
pattern    given for each module; what matches nothing gets the base rank
adalora    1.5 to begin with; training prunes where it matters least, to the base rank on average
=========  ==========================================================================================================

Under a parameter budget the same weights decide the shares: see :func:`fit_budget`.

A module that is not quantized (16 or 32 bits) follows one of two rules under by_bits. In a base with no quantized
target at all, bits say nothing about sensitivity and every module gets the base rank. Next to quantized targets, a
module left in float counts as 8 bits: more capacity than the quantized ones, but not four or eight times as much for
a choice that is often made only because a shape does not divide by the group size.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optiq_core.errors import TrainingError
from optiq_core.train.config import MAX_RANK, parse_budget_like
from optiq_core.train.schemes import RankScaling

# Nothing at or above this width is a quantized weight.
_FLOAT_BITS = 16
_COUNTS_AS_BITS = 8
_LOWEST, _HIGHEST = 0.5, 2.0
_ADALORA_START = 1.5
_NO_KL = "the base's optiq_metadata.json records no KL for it; `optiq convert --method kl` measures it"
_ATTENTION = re.compile(r"(^|\.)(self_attn|attention|attn|linear_attn|self_attention)(\.|$)")


@dataclass(frozen=True)
class Target:
    """A module to adapt.

    Attributes:
        path: for example ``model.layers.0.self_attn.q_proj``.
        input_dims, output_dims: a rank costs their sum in parameters.
        bits: of its weight in the base; 16 or 32, or None, where it is not quantized.
        kl: what quantizing this module cost, in nats, as the base's metadata records it; None if it does not.
        gradient: norm of the loss's gradient at the module; None if it was not probed.
    """

    path: str
    input_dims: int
    output_dims: int
    bits: int | None = None
    kl: float | None = None
    gradient: float | None = None

    @property
    def cost(self) -> int:
        """Parameters of one rank."""
        return self.input_dims + self.output_dims


def allocate_ranks(
    targets: Sequence[Target],
    *,
    rank: int,
    scaling: RankScaling,
    pattern: Mapping[str, int] | None = None,
    budget_like: str = "",
) -> dict[str, int]:
    """Rank of each module, by path, in the order given.

    Args:
        targets: the modules; their paths are distinct.
        rank: the base rank.
        scaling: one of the schemes above.
        pattern: with ``pattern``: a module's path, or its end after a dot, to its rank. The longest match counts.
        budget_like: ``SCHEME:RANK``; the ranks then cost exactly as many parameters as that scheme at that rank, up to
            what one more rank of the cheapest module costs.

    Raises:
        TrainingError: a module would get more rank than can be served, or the scheme needs what is not known.
    """
    weights = _weights(targets, rank, scaling, pattern or {})
    if scaling == "adalora":
        settled = _settled(targets, rank, budget_like)
        ranks = {path: math.ceil(_ADALORA_START * own) for path, own in settled.items()}
    elif budget_like:
        scheme, like = parse_budget_like(budget_like)
        reference = allocate_ranks(targets, rank=like, scaling=scheme)
        ranks = fit_budget(targets, weights, sum(reference[t.path] * t.cost for t in targets))
    else:
        # The rounding guards against 8 * 1.1249999999999998.
        ranks = {t.path: max(1, math.ceil(round(rank * w, 9))) for t, w in zip(targets, weights, strict=True)}
    for path, own in ranks.items():
        if own > MAX_RANK:
            raise TrainingError(
                f"rank: '{path}' would get {own}, at most {MAX_RANK} can be served; lower rank", field="rank"
            )
    return ranks


def adalora_budget(targets: Sequence[Target], *, rank: int, budget_like: str = "") -> int:
    """Parameters that adalora ends with: those of the base rank everywhere, or of another scheme."""
    settled = _settled(targets, rank, budget_like)
    return sum(settled[t.path] * t.cost for t in targets)


def _settled(targets: Sequence[Target], rank: int, budget_like: str) -> dict[str, int]:
    scheme, like = parse_budget_like(budget_like) if budget_like else ("constant", rank)
    return allocate_ranks(targets, rank=like, scaling=scheme)


def fit_budget(targets: Sequence[Target], weights: Sequence[float], budget: int) -> dict[str, int]:
    """Ranks in proportion to weights whose parameters come as close to a budget as they can without exceeding it.

    Every module gets at least rank 1. The largest common factor whose floors fit is found by bisection; what is left
    goes, a rank at a time, to the modules that flooring cut most.

    Raises:
        TrainingError: rank 1 everywhere already costs more.
    """
    least = sum(t.cost for t in targets)
    if least > budget:
        raise TrainingError(
            f"budget_like: {budget} parameters do not give each of {len(targets)} modules rank 1, which takes {least}",
            field="budget_like",
        )

    def floors(factor: float) -> list[int]:
        return [min(MAX_RANK, max(1, math.floor(factor * w))) for w in weights]

    def spent(ranks: Sequence[int]) -> int:
        return sum(r * t.cost for r, t in zip(ranks, targets, strict=True))

    low, high = 0.0, MAX_RANK / min(weights)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(floors(middle)) <= budget else (low, middle)
    ranks = floors(low)
    left = budget - spent(ranks)
    while True:
        open_to = [i for i, t in enumerate(targets) if t.cost <= left and ranks[i] < MAX_RANK]
        if not open_to:
            return {t.path: r for t, r in zip(targets, ranks, strict=True)}
        most_cut = max(open_to, key=lambda i: high * weights[i] - ranks[i])
        ranks[most_cut] += 1
        left -= targets[most_cut].cost


@dataclass(frozen=True)
class Allocation:
    """Modules with the rank that each gets."""

    targets: tuple[Target, ...]
    ranks: dict[str, int]

    @property
    def parameters(self) -> int:
        """Trainable parameters of a LoRA with these ranks."""
        return sum(self.ranks[t.path] * t.cost for t in self.targets)

    def as_text(self) -> str:
        """A line for each module, and the sums."""
        width = max(len(t.path) for t in self.targets)
        lines = [f"{'module'.ljust(width)}  bits  rank  parameters"]
        for t in self.targets:
            rank = self.ranks[t.path]
            lines.append(f"{t.path.ljust(width)}  {t.bits or '-':>4}  {rank:>4}  {rank * t.cost:>10,}")
        spread = ", ".join(f"{rank}: {count}" for rank, count in distribution(self.ranks).items())
        lines.append(f"{self.parameters:,} parameters across {len(self.targets)} modules, ranks {{{spread}}}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The same, for programs."""
        modules = [
            {"path": t.path, "bits": t.bits, "rank": self.ranks[t.path], "parameters": self.ranks[t.path] * t.cost}
            for t in self.targets
        ]
        spread = {str(rank): count for rank, count in distribution(self.ranks).items()}
        return {"parameters": self.parameters, "rank_distribution": spread, "modules": modules}


def distribution(ranks: Mapping[str, int]) -> dict[int, int]:
    """Number of modules at each rank, lowest rank first."""
    return dict(sorted(Counter(ranks.values()).items()))


def is_attention(path: str) -> bool:
    """Whether a module belongs to attention, by its path."""
    return _ATTENTION.search(path) is not None


def _weights(targets: Sequence[Target], rank: int, scaling: RankScaling, pattern: Mapping[str, int]) -> list[float]:
    rules: dict[RankScaling, Callable[[], list[float]]] = {
        "constant": lambda: [1.0] * len(targets),
        "by_bits": lambda: _by_bits(targets),
        "by_kl": lambda: _over_median([_known(t.kl, t, "by_kl", _NO_KL) for t in targets]),
        "gradient": lambda: _over_median([_known(t.gradient, t, "gradient", "it was not probed") for t in targets]),
        "linear": lambda: _linear(targets),
        "attention": lambda: [1.0 if is_attention(t.path) else 0.5 for t in targets],
        "ffn": lambda: [0.5 if is_attention(t.path) else 1.0 for t in targets],
        "pattern": lambda: _pattern(targets, rank, pattern),
        "adalora": lambda: [_ADALORA_START] * len(targets),
    }
    return rules[scaling]()


def _by_bits(targets: Sequence[Target]) -> list[float]:
    bits = [t.bits or _FLOAT_BITS for t in targets]
    if all(value >= _FLOAT_BITS for value in bits):
        return [1.0] * len(targets)
    return [(value if value < _FLOAT_BITS else _COUNTS_AS_BITS) / 4 for value in bits]


def _over_median(scores: Sequence[float]) -> list[float]:
    median = statistics.median(scores)
    if median <= 0:
        return [1.0] * len(scores)
    return [min(max(score / median, _LOWEST), _HIGHEST) for score in scores]


def _linear(targets: Sequence[Target]) -> list[float]:
    blocks = [next((int(part) for part in t.path.split(".") if part.isdigit()), 0) for t in targets]
    low, high = min(blocks), max(blocks)
    if low == high:
        return [1.0] * len(targets)
    return [0.5 + (block - low) / (high - low) for block in blocks]


def _pattern(targets: Sequence[Target], rank: int, pattern: Mapping[str, int]) -> list[float]:
    if not pattern:
        raise TrainingError("rank_pattern: rank_scaling is pattern, and no pattern is given", field="rank_pattern")
    matched: set[str] = set()
    weights = []
    for target in targets:
        keys = [key for key in pattern if f".{target.path}".endswith(f".{key}")]
        matched.update(keys)
        weights.append(pattern[max(keys, key=len)] / rank if keys else 1.0)
    for key in pattern:
        if key not in matched:
            raise TrainingError(f"rank_pattern: {key!r} is none of the adapted modules", field="rank_pattern")
    return weights


def _known(score: float | None, target: Target, scheme: str, how: str) -> float:
    if score is None or not math.isfinite(score):
        raise TrainingError(f"rank_scaling: {scheme} needs a score for '{target.path}': {how}", field="rank_scaling")
    return score
