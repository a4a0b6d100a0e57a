"""The shape of a training step, and the largest one that a data set will ask for. No MLX here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from optiq_core.train.batches import padded
from optiq_core.train.data import Example


@dataclass(frozen=True, slots=True)
class StepShape:
    """What :func:`optiq_core.train.batches.collate` makes of a batch.

    Attributes:
        rows: examples, ``B``.
        width: padded inputs per example, ``T``.
        positions: padded inputs whose target carries loss, ``P``.
        packed: several examples share a row.
    """

    rows: int
    width: int
    positions: int
    packed: bool = False


def full_shape(batch_size: int, tokens: int, pack_length: int = 0) -> StepShape:
    """Of a batch whose rows all have this many tokens, or the packed ones if those are longer, and train on all."""
    tokens = max(tokens, pack_length)
    width = padded(tokens - 1)
    return StepShape(batch_size, width, padded(batch_size * (tokens - 1)), pack_length > 0)


def largest_pairs_shape(examples: Sequence[Example], batch_size: int) -> StepShape:
    """The largest batch of preferred and rejected answers, or one that is larger still."""
    answers = [answer for example in examples for answer in (example, example.rejected) if answer]
    rows = 2 * min(batch_size, len(examples))
    most = sorted((len(answer.tokens) - answer.start for answer in answers), reverse=True)[:rows]
    return StepShape(rows, padded(max(example.length for example in examples) - 1), padded(sum(most)))


def largest_packed_shape(examples: Sequence[Example], batch_size: int, pack_length: int) -> StepShape:
    """The largest batch of packed rows, or one that is larger still: what could be in it is bounded, not tried."""
    total = sum(len(example.tokens) for example in examples)
    longest = max(len(example.tokens) for example in examples)
    row = max(longest, min(pack_length, total))
    room, positions = batch_size * row, 0.0
    # As in a knapsack whose goods can be cut: the examples with most loss per token fill it first.
    for example in sorted(examples, key=lambda e: e.trainable / len(e.tokens), reverse=True):
        taken = min(room, len(example.tokens))
        positions += example.trainable * taken / len(example.tokens)
        room -= taken
        if not room:
            break
    return StepShape(min(batch_size, len(examples)), padded(row - 1), padded(ceil(positions)), packed=True)


def largest_shape(examples: Sequence[Example], batch_size: int) -> StepShape:
    """The largest batch that the order of batches can make of these examples, however it shuffles them."""
    ordered = sorted(examples, key=lambda example: len(example.tokens), reverse=True)
    rows = min(batch_size, len(ordered))
    # Batches are cut from examples sorted by padded length: the longest one meets any of its own padded length.
    shortest = padded(len(ordered[rows - 1].tokens) - 1)
    together = [example.trainable for example in ordered if padded(len(example.tokens) - 1) >= shortest]
    positions = sum(sorted(together, reverse=True)[:rows])
    return StepShape(rows, padded(len(ordered[0].tokens) - 1), padded(positions))
