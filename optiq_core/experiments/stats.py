"""Intervals and significance for accuracies on shared items, through SciPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

_DRAWS = 10_000
Means = npt.NDArray[np.float64]


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
        holm: the p-value after Holm's correction for all comparisons that are shown together (Holm, 1979).
    """

    difference: float
    low: float
    high: float
    only_first: int
    only_second: int
    p_value: float
    holm: float | None = None

    @property
    def reversed(self) -> Comparison:
        """The same with first and second exchanged."""
        return replace(
            self,
            difference=-self.difference,
            low=-self.high,
            high=-self.low,
            only_first=self.only_second,
            only_second=self.only_first,
        )

    def not_worse(self, margin: float) -> bool:
        """Whether the second is non-inferior: the interval excludes that it loses ``margin`` or more."""
        return self.low > -margin

    def equivalent(self, margin: float) -> bool:
        """Whether the interval lies within the margin on both sides."""
        return -margin < self.low and self.high < margin


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
    runs = rng.integers(0, len(gains), (_DRAWS, len(gains)))
    # Of the items that are drawn only the numbers of losses, ties and gains matter: one multinomial draw for a run.
    drawn = np.stack([_resampled_means(run, runs.shape, rng) for run in gains])
    means = np.take_along_axis(drawn, runs[None], axis=0)[0].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    if not discordant:
        # A bootstrap of nothing but ties has no width; the rule of three bounds what so many ties exclude.
        low, high = -min(1.0, 3 / len(pooled)), min(1.0, 3 / len(pooled))
    return Comparison(float(pooled.mean()), float(low), float(high), only_first, only_second, p_value)


def _resampled_means(gains: npt.NDArray[np.int8], shape: tuple[int, ...], rng: np.random.Generator) -> Means:
    """Mean gain [shape] of as many items, drawn from these with replacement."""
    shares = [float((gains == value).mean()) for value in (-1, 0, 1)]
    counts = rng.multinomial(len(gains), shares, size=shape)
    return np.asarray((counts[..., 2] - counts[..., 0]) / len(gains), np.float64)


def with_holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons with p-values that hold for all of them together."""
    order = sorted(range(len(comparisons)), key=lambda i: comparisons[i].p_value)
    adjusted, largest = [0.0] * len(comparisons), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(comparisons) - rank) * comparisons[index].p_value))
        adjusted[index] = largest
    return [replace(c, holm=p) for c, p in zip(comparisons, adjusted, strict=True)]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in cost (first, lower is better) and value (second, higher is)."""
    return [
        i
        for i, (cost, value) in enumerate(points)
        if not any(c <= cost and v >= value and (c < cost or v > value) for c, v in points)
    ]
