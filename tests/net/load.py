"""Random requests and adapters, from one seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.nn as nn

from optiq_core.adapters.kinds import adaptable_experts
from optiq_core.engine.types import EngineRequest, Sampling
from tests.unit.tiny import write_mlx_adapter

TARGETS = (
    ("q_proj", "v_proj"),
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("gate_proj", "up_proj", "down_proj"),
    ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
)


@dataclass(frozen=True)
class Shape:
    """How large everything is.

    Attributes:
        vocabulary: token ids are drawn below it; 0 is never drawn.
        longest_prompt, longest_answer: tokens.
        ranks: of adapters.
        scale: of adapters; large enough to change answers.
        greedy: share of greedy requests; a random model repeats itself then, and tells little.
    """

    vocabulary: int
    longest_prompt: int
    longest_answer: int
    ranks: Sequence[int]
    scale: float
    greedy: float


TINY = Shape(64, 150, 40, (1, 2, 3, 5, 8, 16, 24, 40), 12.0, 0.3)
EMBEDDED = Shape(49_000, 200, 12, (1, 4, 8, 12, 16, 64), 0.3, 0.6)


def write_adapters(root: Path, model: nn.Module, shape: Shape, count: int, seed: int) -> dict[str, Path]:
    """Write adapters of mixed ranks, targets and kinds; returns their folders by key."""
    made = {}
    mixture = bool(adaptable_experts(model))
    for i in range(count):
        rank, targets = shape.ranks[i % len(shape.ranks)], TARGETS[i % len(TARGETS)]
        made[f"v{i}"] = write_mlx_adapter(
            root / f"v{i}",
            model,
            rank=rank,
            scale=shape.scale,
            seed=seed * 1000 + i,
            # There is no DoRA on experts.
            dora=i % 3 == 2 and not (mixture and "q_proj" not in targets),
            targets=targets,
        )
    return made


class RequestMaker:
    """Makes requests; about half of the prompts begin like earlier ones.

    Args:
        shape: their size.
        seed: the same seed makes the same requests.
    """

    def __init__(self, shape: Shape, seed: int) -> None:
        self._shape = shape
        self._random = random.Random(seed)
        self._beginnings = [self._tokens(20, shape.longest_prompt - 10) for _ in range(6)]
        self._made = 0

    def make(self, adapters: Sequence[str]) -> EngineRequest:
        """Return a request for some of these adapters, or the base."""
        draw = self._random
        self._made += 1
        kind = draw.random()
        chosen = draw.sample(list(adapters), min(len(adapters), draw.randint(2, 4)))
        adapter, blend = "", ()
        if kind < 0.35 and len(chosen) >= 2:
            blend = tuple((key, round(draw.uniform(-0.6, 1.0), 3)) for key in chosen)
        elif kind < 0.85 and chosen:
            adapter = chosen[0]
        greedy = draw.random() < self._shape.greedy
        return EngineRequest(
            request_id=f"r{self._made}-{draw.getrandbits(32):x}",
            prompt=self._prompt(),
            max_tokens=draw.randint(1, self._shape.longest_answer),
            adapter=adapter,
            blend=blend,
            factor=draw.choice((1.0, 1.0, 1.0, 0.5, 0.0, 1.3)),
            namespace=draw.choice(("t", "t", "u")),
            sampling=Sampling()
            if greedy
            else Sampling(
                temperature=draw.choice((0.7, 1.0, 1.5)),
                top_p=draw.choice((1.0, 0.95)),
                top_k=draw.choice((0, 20)),
                min_p=draw.choice((0.0, 0.02)),
                seed=draw.getrandbits(63),
            ),
        )

    def _prompt(self) -> tuple[int, ...]:
        draw = self._random
        if draw.random() < 0.5:
            return self._tokens(1, self._shape.longest_prompt)
        beginning = draw.choice(self._beginnings)
        return (*beginning[: draw.choice((len(beginning), draw.randint(1, len(beginning))))], *self._tokens(1, 8))

    def _tokens(self, least: int, most: int) -> tuple[int, ...]:
        count = self._random.randint(least, most)
        return tuple(self._random.randrange(1, self._shape.vocabulary) for _ in range(count))
