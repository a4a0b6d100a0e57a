"""The shape of a training step, and the largest one that a data set will ask for. No MLX here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optiq_core.train.batches import padded
from optiq_core.train.data import Example


@dataclass(frozen=True, slots=True)
class StepShape:
    """What :func:`optiq_core.train.batches.collate` makes of a batch.

    Attributes:
        rows: examples, ``B``.
        width: padded inputs per example, ``T``.
        positions: padded inputs whose target carries loss, ``P``.
    """

    rows: int
    width: int
    positions: int


def full_shape(batch_size: int, tokens: int) -> StepShape:
    """Of a batch whose examples all have this many tokens and are trained on all of them."""
    width = padded(tokens - 1)
    return StepShape(batch_size, width, padded(batch_size * (tokens - 1)))


def largest_shape(examples: Sequence[Example], batch_size: int) -> StepShape:
    """The largest batch that the order of batches can make of these examples, however it shuffles them."""
    ordered = sorted(examples, key=lambda example: len(example.tokens), reverse=True)
    rows = min(batch_size, len(ordered))
    # Batches are cut from examples sorted by padded length: the longest one meets any of its own padded length.
    shortest = padded(len(ordered[rows - 1].tokens) - 1)
    together = [example.trainable for example in ordered if padded(len(example.tokens) - 1) >= shortest]
    positions = sum(sorted(together, reverse=True)[:rows])
    return StepShape(rows, padded(len(ordered[0].tokens) - 1), padded(positions))
