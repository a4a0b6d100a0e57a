"""Which option each module gets within a budget of bits: a knapsack with one choice per module. No MLX here.

The greedy rule starts with the cheapest option everywhere and keeps taking the upgrade with the largest drop in KL per
added bit that still fits. Over the lower convex hulls of the options this is the optimum of the relaxed problem, so
only the last upgrades, those around the budget's edge, can be wrong.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from optiq_core.errors import QuantizationError


@dataclass(frozen=True)
class Choice:
    """One option of a module.

    Attributes:
        label: the option's name.
        cost: bits on disk.
        kl: what it does to the output.
    """

    label: str
    cost: int
    kl: float


@dataclass(frozen=True)
class Item:
    """A module with its choices, cheapest first."""

    path: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Allocation:
    """What every module gets.

    Attributes:
        chosen: choice by module path.
        unprotected: protected modules that the budget did not suffice for; they competed like all others.
    """

    chosen: Mapping[str, Choice]
    unprotected: tuple[str, ...] = ()

    @property
    def cost(self) -> int:
        """Bits on disk of all modules."""
        return sum(c.cost for c in self.chosen.values())

    @property
    def kl(self) -> float:
        """Sum over the modules, which is what the allocators make small."""
        return sum(c.kl for c in self.chosen.values())


def protect(items: Sequence[Item], budget: int, protected: set[str]) -> tuple[list[Item], tuple[str, ...]]:
    """Leave protected modules only their best option, as far as the budget reaches.

    Those that gain most per bit come first. With one that does not fit, smaller ones after it still may.

    Args:
        items: modules with their choices.
        budget: bits for all of them.
        protected: paths.

    Returns:
        The items, and the paths that could not be protected.
    """
    room = budget - sum(item.choices[0].cost for item in items)
    wanted = [item for item in items if item.path in protected and len(item.choices) > 1]
    wanted.sort(key=lambda item: -_rate(item.choices[0], item.choices[-1]))
    fixed: set[str] = set()
    for item in wanted:
        added = item.choices[-1].cost - item.choices[0].cost
        if added <= room:
            room -= added
            fixed.add(item.path)
    kept = [replace(item, choices=item.choices[-1:]) if item.path in fixed else item for item in items]
    return kept, tuple(item.path for item in wanted if item.path not in fixed)


def allocate_greedy(items: Sequence[Item], budget: int) -> Allocation:
    """Spend a budget greedily.

    Args:
        items: modules with their choices.
        budget: bits for all of them.

    Raises:
        QuantizationError: the cheapest choices already cost more.
    """
    check_budget(items, budget)
    left = budget - sum(item.choices[0].cost for item in items)
    chosen = {item.path: item.choices[0] for item in items}
    hulls = [_hull(item.choices) for item in items]
    heap = [(-_rate(hull[0], hull[1]), index, 1) for index, hull in enumerate(hulls) if len(hull) > 1]
    heapq.heapify(heap)
    while heap:
        _, index, step = heapq.heappop(heap)
        hull, path = hulls[index], items[index].path
        added = hull[step].cost - chosen[path].cost
        if added > left:
            continue
        left -= added
        chosen[path] = hull[step]
        if step + 1 < len(hull):
            heapq.heappush(heap, (-_rate(hull[step], hull[step + 1]), index, step + 1))
    _fill(items, chosen, left)
    return Allocation(chosen)


def check_budget(items: Sequence[Item], budget: int) -> None:
    """Raise QuantizationError if a budget does not even pay the cheapest choices."""
    least = sum(item.choices[0].cost for item in items)
    if least > budget:
        raise QuantizationError(
            f"the cheapest candidates take {least} bits, the target leaves {budget}; "
            "raise --target-bpw, or add lower --candidate-bits or a larger --group-size"
        )


def _fill(items: Sequence[Item], chosen: dict[str, Choice], left: int) -> None:
    """Spend what is left on the best upgrades of any kind that fit."""
    while True:
        upgrades = [
            (_rate(chosen[item.path], choice), item.path, choice)
            for item in items
            for choice in item.choices
            if choice.kl < chosen[item.path].kl and 0 < choice.cost - chosen[item.path].cost <= left
        ]
        if not upgrades:
            return
        _, path, choice = max(upgrades, key=lambda u: (u[0], u[1]))
        left -= choice.cost - chosen[path].cost
        chosen[path] = choice


def _hull(choices: Sequence[Choice]) -> list[Choice]:
    """Lower convex hull of KL over cost, cheapest first: every step gains less per bit than the one before."""
    hull: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.cost, c.kl)):
        if hull and choice.kl >= hull[-1].kl:
            continue
        while len(hull) > 1 and _rate(hull[-1], choice) >= _rate(hull[-2], hull[-1]):
            hull.pop()
        if hull and choice.cost == hull[-1].cost:
            hull.pop()
        hull.append(choice)
    return hull


def _rate(low: Choice, high: Choice) -> float:
    """Drop in KL per added bit."""
    return (low.kl - high.kl) / max(high.cost - low.cost, 1)
