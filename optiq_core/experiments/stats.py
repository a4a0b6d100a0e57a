"""Intervals and significance for accuracies on shared items, through SciPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

_DRAWS = 10_000


@dataclass(frozen=True)
class Interval:
    """A proportion with its 95 % interval (Wilson, 1927)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two configurations on the same items.

    Attributes:
        difference: accuracy of the second minus the first's, pooled over items and seeds.
        low, high: 95 % interval of the difference, from a paired bootstrap that draws seeds, then items in them.
        only_first, only_second: items that one got right and the other did not.
        p_value: exact McNemar test (two-sided) of the two being equally often right alone.
    """

    difference: float
    low: float
    high: float
    only_first: int
    only_second: int
    p_value: float


def proportion(right: int, of: int) -> Interval:
    """Accuracy with its interval; of must be positive."""
    found = binomtest(right, of).proportion_ci(0.95, method="wilson")
    return Interval(right / of, float(found.low), float(found.high))


def compare(first: Sequence[Sequence[bool]], second: Sequence[Sequence[bool]], *, seed: int = 0) -> Comparison:
    """Compare two configurations item by item.

    Args:
        first, second: for each seed of the experiment, whether each item was answered right; the same items in the
            same order in both.
        seed: of the bootstrap.

    Raises:
        ValueError: the two do not have the same items.
    """
    if [len(run) for run in first] != [len(run) for run in second]:
        raise ValueError("both must have the same seeds and items")
    gains = [np.asarray(b, np.int8) - np.asarray(a, np.int8) for a, b in zip(first, second, strict=True)]
    pooled = np.concatenate(gains)
    only_second, only_first = int((pooled > 0).sum()), int((pooled < 0).sum())
    discordant = only_first + only_second
    p_value = float(binomtest(only_second, discordant, 0.5).pvalue) if discordant else 1.0
    rng = np.random.default_rng(seed)
    means = np.empty(_DRAWS)
    for draw in range(_DRAWS):
        runs = rng.integers(0, len(gains), len(gains))
        means[draw] = np.mean([rng.choice(gains[run], len(gains[run])).mean() for run in runs])
    low, high = np.quantile(means, (0.025, 0.975))
    return Comparison(float(pooled.mean()), float(low), float(high), only_first, only_second, p_value)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in cost (first, lower is better) and value (second, higher is)."""
    return [
        i
        for i, (cost, value) in enumerate(points)
        if not any(c <= cost and v >= value and (c < cost or v > value) for c, v in points)
    ]
