"""The space of a joint search: bits and rank for groups of layers, what a choice weighs, and the one-shot solution.

A module's bytes are those of its quantized weight with scales, and of its adapter's parameters in float32, which is
what serving holds; a file in mlx-lm's format pads every module to the adapter's largest rank. No MLX here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from optiq_core.errors import OptiqError
from optiq_core.quant.allocate import Choice, Item, allocate_greedy, protect

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
        group: modules of one group get the same bits and the same rank.
        stored: bits to the size of the quantized weight on disk, in bits, scales included.
        kl: bits to the KL divergence that quantizing this module alone causes, in nats per token.
        rank_cost: parameters of one rank; 0 where it is not adapted.
        captured: rank to the part of the loss's squared gradient that lies in as many directions; empty where it is
            not adapted.
    """

    path: str
    group: str
    stored: Mapping[int, int]
    kl: Mapping[int, float]
    rank_cost: int = 0
    captured: Mapping[int, float] | None = None


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
        ranks: to choose from, ascending.
        other_bytes: of what is in the base besides these modules.
    """

    modules: tuple[Module, ...]
    bits: tuple[int, ...]
    ranks: tuple[int, ...]
    other_bytes: int

    @property
    def groups(self) -> list[str]:
        """All groups."""
        return list(dict.fromkeys(m.group for m in self.modules))

    @property
    def adapted_groups(self) -> list[str]:
        """Groups with a module that is adapted."""
        return list(dict.fromkeys(m.group for m in self.modules if m.rank_cost))

    @property
    def parameters(self) -> dict[str, list[int]]:
        """The search's parameters by name, and what each can be."""
        bits = {f"bits {group}": list(self.bits) for group in self.groups}
        return bits | {f"rank {group}": list(self.ranks) for group in self.adapted_groups}

    def assign(self, parameters: Mapping[str, int]) -> Assignment:
        """The modules' bits and ranks for values of :attr:`parameters`."""
        return Assignment(
            {m.path: parameters[f"bits {m.group}"] for m in self.modules},
            {m.path: parameters[f"rank {m.group}"] for m in self.modules if m.rank_cost},
        )

    def bytes(self, chosen: Assignment) -> int:
        """Bytes of base and adapter."""
        stored = sum(m.stored[chosen.bits[m.path]] for m in self.modules)
        return self.other_bytes + math.ceil(stored / 8) + self._adapter_bytes(chosen.ranks)

    def kl(self, chosen: Assignment) -> float:
        """Sum of the modules' KL divergences: to first order that of the base."""
        return sum(m.kl[chosen.bits[m.path]] for m in self.modules)

    def captured(self, chosen: Assignment) -> float:
        """Share of the loss's squared gradient that the ranks have directions for, from 0 to 1."""
        adapted = [m for m in self.modules if m.captured]
        whole = sum(max((m.captured or {}).values()) for m in adapted)
        return sum((m.captured or {})[chosen.ranks[m.path]] for m in adapted) / whole if whole else 0.0

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

    def one_shot(self, budget: int, rank: int, protected: Iterable[str] = ()) -> Assignment:
        """What the pipeline does without a search: bits by sensitivity, module by module, and ranks by bits.

        A module's bits decide its rank, so that one knapsack pays for both.

        Args:
            budget: bytes of base and adapter.
            rank: of a module at 4 bits.
            protected: modules that get the most bits first.

        Raises:
            SearchError: the budget is too small for this rank.
        """
        items = [self._item(m.path, [m], lambda bits: _by_bits(rank, bits)) for m in self.modules]
        bits = self._allocate(items, budget, set(protected))
        return Assignment(bits, {m.path: _by_bits(rank, bits[m.path]) for m in self._adapted})

    def grouped_one_shot(self, budget: int, rank: int) -> dict[str, int]:
        """The same rule on whole groups: values of :attr:`parameters`, where a search can begin.

        Raises:
            SearchError: the budget is too small for this rank.
        """
        members = {g: [m for m in self.modules if m.group == g] for g in self.groups}
        items = [self._item(g, own, lambda bits: self._near(rank * bits / _BASE_BITS)) for g, own in members.items()]
        bits = self._allocate(items, budget, set())
        ranks = {g: self._near(rank * bits[g] / _BASE_BITS) for g in self.adapted_groups}
        return {f"bits {g}": b for g, b in bits.items()} | {f"rank {g}": r for g, r in ranks.items()}

    @property
    def _adapted(self) -> list[Module]:
        return [m for m in self.modules if m.rank_cost]

    def _adapter_bytes(self, ranks: Mapping[str, int]) -> int:
        return _ADAPTER_BYTES * sum(ranks[m.path] * m.rank_cost for m in self._adapted)

    def _item(self, name: str, members: Sequence[Module], rank_of: Callable[[int], int]) -> Item:
        """Modules that share their bits; a choice costs its weights and the adapter that goes with it."""
        per_rank = 8 * _ADAPTER_BYTES * sum(m.rank_cost for m in members)
        choices = [
            Choice(str(b), sum(m.stored[b] for m in members) + rank_of(b) * per_rank, sum(m.kl[b] for m in members))
            for b in self.bits
        ]
        return Item(name, tuple(sorted(choices, key=lambda c: (c.cost, c.kl))))

    def _allocate(self, items: Sequence[Item], budget: int, protected: set[str]) -> dict[str, int]:
        room = 8 * (budget - self.other_bytes)
        least = sum(item.choices[0].cost for item in items)
        if least > room:
            raise SearchError(
                f"budget: {budget / 1e6:.2f} MB, and the fewest bits with their adapter take "
                f"{(least / 8 + self.other_bytes) / 1e6:.2f} MB"
            )
        kept, _ = protect(items, room, protected)
        return {path: int(choice.label) for path, choice in allocate_greedy(kept, room).chosen.items()}

    def _near(self, rank: float) -> int:
        return min(self.ranks, key=lambda own: (abs(own - rank), own))


def _by_bits(rank: int, bits: int) -> int:
    return math.ceil(rank * bits / _BASE_BITS)
