"""The space of a joint search: what a choice weighs, and the one-shot solution as one point of it.

A choice gives every group of layers a weight and a base rank. The weight multiplies the group's KL divergences before
one knapsack over all modules spends the budget, so that every choice takes about the same bytes, bits are chosen module
by module, and all weights at 1 are the solution without a search. Ranks follow bits within a group.

A module's bytes are those of its quantized weight with scales, and of its adapter's parameters in float32, which is
what serving holds; a file in mlx-lm's format pads every module to the adapter's largest rank. No MLX here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optiq_core.errors import OptiqError
from optiq_core.quant.allocate import Choice, Item, allocate_greedy, protect

# What a group's KL divergences can be multiplied by.
WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)
_ADAPTER_BYTES = 4
# by_bits: rank of a module over that of one at 4 bits.
_BASE_BITS = 4


class SearchError(OptiqError):
    """A search that cannot be done as asked."""


@dataclass(frozen=True)
class Module:
    """What one module can be, and what that costs.

    Attributes:
        path: dotted.
        group: modules of one group share a weight and a base rank.
        stored: bits to the size of the quantized weight on disk, in bits, scales included.
        kl: bits to the KL divergence that quantizing this module alone causes, in nats per token.
        rank_cost: parameters of one rank; 0 where it is not adapted.
        captured: the part of the loss's squared gradient that lies in one direction, in two, and so on up to all;
            empty where it is not adapted.
    """

    path: str
    group: str
    stored: Mapping[int, int]
    kl: Mapping[int, float]
    rank_cost: int = 0
    captured: Sequence[float] = ()


@dataclass(frozen=True)
class Assignment:
    """Bits of every module, and rank of every adapted one, by path."""

    bits: Mapping[str, int]
    ranks: Mapping[str, int]


@dataclass(frozen=True)
class Space:
    """All choices.

    Attributes:
        modules: in the order of the forward pass.
        bits: to choose from, ascending.
        ranks: of a module at 4 bits, to choose from, ascending.
        other_bytes: of what is in the base besides these modules.
        protected: modules that get the most bits first, as far as the budget reaches and their group's weight is 1 or
            more.
    """

    modules: tuple[Module, ...]
    bits: tuple[int, ...]
    ranks: tuple[int, ...]
    other_bytes: int
    protected: frozenset[str] = frozenset()

    @property
    def groups(self) -> list[str]:
        """All groups."""
        return list(dict.fromkeys(m.group for m in self.modules))

    @property
    def adapted_groups(self) -> list[str]:
        """Groups with a module that is adapted."""
        return list(dict.fromkeys(m.group for m in self.modules if m.rank_cost))

    @property
    def parameters(self) -> dict[str, tuple[float, ...]]:
        """The search's parameters by name, and what each can be."""
        weights = {f"weight {group}": WEIGHTS for group in self.groups}
        return weights | {f"rank {group}": self.ranks for group in self.adapted_groups}

    def neutral(self, rank: int) -> dict[str, float]:
        """Values of :attr:`parameters` that stand for no search: :meth:`one_shot`."""
        weights: dict[str, float] = {f"weight {group}": 1.0 for group in self.groups}
        return weights | {f"rank {group}": rank for group in self.adapted_groups}

    def assign(self, parameters: Mapping[str, float], budget: int) -> Assignment:
        """The modules' bits and ranks for values of :attr:`parameters`.

        A module's bits decide its rank, so that one knapsack pays for both.

        Args:
            parameters: of every group.
            budget: bytes of base and adapter; where the fewest bits take more, these.
        """
        rank = {m.path: int(parameters[f"rank {m.group}"]) for m in self._adapted}
        weight = {m.path: parameters[f"weight {m.group}"] for m in self.modules}
        items = [self._item(m, weight[m.path], rank.get(m.path, 0)) for m in self.modules]
        room = 8 * (budget - self.other_bytes)
        if sum(item.choices[0].cost for item in items) > room:
            bits = {item.path: int(item.choices[0].label) for item in items}
        else:
            first = {path for path in self.protected if weight[path] >= 1}
            kept, _ = protect(items, room, first)
            bits = {path: int(choice.label) for path, choice in allocate_greedy(kept, room).chosen.items()}
        return Assignment(bits, {path: _by_bits(own, bits[path]) for path, own in rank.items()})

    def bytes(self, chosen: Assignment) -> int:
        """Bytes of base and adapter."""
        stored = sum(m.stored[chosen.bits[m.path]] for m in self.modules)
        return self.other_bytes + math.ceil(stored / 8) + self._adapter_bytes(chosen.ranks)

    def kl(self, chosen: Assignment) -> float:
        """Sum of the modules' KL divergences: to first order that of the base."""
        return sum(m.kl[chosen.bits[m.path]] for m in self.modules)

    def captured(self, chosen: Assignment) -> float:
        """Share of the loss's squared gradient that the ranks have directions for, from 0 to 1."""
        whole = sum(m.captured[-1] for m in self._adapted)
        kept = sum(m.captured[min(chosen.ranks[m.path], len(m.captured)) - 1] for m in self._adapted)
        return kept / whole if whole else 0.0

    def default_budget(self, rank: int) -> int:
        """Bytes an eighth of the way from the fewest bits everywhere to the most, adapters with ranks by bits included.

        With 4 and 8 bits in groups of 64 that is 5 bits per weight.
        """
        low, high = (
            self.bytes(
                Assignment({m.path: bits for m in self.modules}, {m.path: _by_bits(rank, bits) for m in self._adapted})
            )
            for bits in (min(self.bits), max(self.bits))
        )
        return low + (high - low) // 8

    def one_shot(self, budget: int, rank: int) -> Assignment:
        """What the pipeline does without a search: bits by sensitivity, module by module, and ranks by bits.

        Args:
            budget: bytes of base and adapter.
            rank: of a module at 4 bits.

        Raises:
            SearchError: the budget is too small for this rank.
        """
        chosen = self.assign(self.neutral(rank), budget)
        if (least := self.bytes(chosen)) > budget:
            raise SearchError(
                f"budget: {budget / 1e6:.2f} MB, and the fewest bits with their adapter take {least / 1e6:.2f} MB"
            )
        return chosen

    @property
    def _adapted(self) -> list[Module]:
        return [m for m in self.modules if m.rank_cost]

    def _adapter_bytes(self, ranks: Mapping[str, int]) -> int:
        return _ADAPTER_BYTES * sum(ranks[m.path] * m.rank_cost for m in self._adapted)

    def _item(self, module: Module, weight: float, rank: int) -> Item:
        """A module for the knapsack; a choice costs its weights and the adapter that goes with it."""
        per_rank = 8 * _ADAPTER_BYTES * module.rank_cost
        choices = [
            Choice(str(b), module.stored[b] + _by_bits(rank, b) * per_rank, weight * module.kl[b]) for b in self.bits
        ]
        return Item(module.path, tuple(sorted(choices, key=lambda c: (c.cost, c.kl))))


def _by_bits(rank: int, bits: int) -> int:
    return math.ceil(rank * bits / _BASE_BITS)
