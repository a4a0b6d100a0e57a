"""How much rank each adapted module gets. No MLX here.

``by_bits`` gives ``ceil(rank * bits / 4)``: a module that the base keeps at 8 bits, because it is
sensitive, gets twice the rank of one at 4 bits.

A module that is not quantized (16 or 32 bits) follows one of two rules. In a base with no quantized
target at all, bits say nothing about sensitivity and every module gets the base rank. Next to
quantized targets, a module left in float counts as 8 bits: more capacity than the quantized ones, but
not four or eight times as much for a choice that is often made only because a shape does not divide
by the group size.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from optiq_core.errors import TrainingError
from optiq_core.train.config import MAX_RANK, RankScaling

# Nothing at or above this width is a quantized weight.
_FLOAT_BITS = 16
_COUNTS_AS_BITS = 8


def allocate_ranks(
    paths: Iterable[str],
    *,
    rank: int,
    scaling: RankScaling,
    bits_of: Callable[[str], int | None],
) -> dict[str, int]:
    """Rank of each module, by path, in the order given.

    Args:
        paths: module paths, for example ``model.layers.0.self_attn.q_proj``.
        rank: the base rank.
        scaling: ``constant`` or ``by_bits``.
        bits_of: bits of a module's weight in the base (16 or 32 where it is not quantized, None where
            the base does not say, which counts as not quantized).

    Raises:
        TrainingError: a module would get more rank than can be served.
    """
    if scaling == "constant":
        return dict.fromkeys(paths, rank)
    if scaling != "by_bits":
        raise TrainingError(f"rank_scaling: must be constant or by_bits, is {scaling}", field="rank_scaling")
    bits = {path: bits_of(path) or _FLOAT_BITS for path in paths}
    if all(value >= _FLOAT_BITS for value in bits.values()):
        return dict.fromkeys(bits, rank)
    ranks = {
        path: math.ceil(rank * (value if value < _FLOAT_BITS else _COUNTS_AS_BITS) / 4) for path, value in bits.items()
    }
    for path, own in ranks.items():
        if own > MAX_RANK:
            raise TrainingError(
                f"rank: '{path}' would get {own}, at most {MAX_RANK} can be served; lower rank", field="rank"
            )
    return ranks


def distribution(ranks: Mapping[str, int]) -> dict[int, int]:
    """Number of modules at each rank, lowest rank first."""
    return dict(sorted(Counter(ranks.values()).items()))
