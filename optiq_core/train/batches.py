"""Turns examples into batches whose shapes come from a small set, in an order that can be resumed.

The order is a function of (seed, position) alone: a checkpoint needs only the number of batches taken so far.
Each epoch shuffles the examples, sorts them by padded length, cuts the result into batches and shuffles those,
so batches hold examples of like length but are different ones in every epoch. The last batch of an epoch may be
smaller; since it always holds the longest examples, it adds one shape, not one per length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from optiq_core.train.data import Example

IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Batch:
    """One padded batch, on the host.

    Attributes:
        tokens: ``[B, T + 1]``, padded with 0; inputs are ``[:, :-1]`` and targets ``[:, 1:]``.
        spans: ``[B, 2]``, first and last index in ``tokens`` that carries loss, both inclusive.
        positions: ``[P]`` flat indices into ``[B, T]`` of the inputs whose target carries loss, padded with 0.
        loss_tokens: how many of ``positions`` are real.
        real_tokens: tokens that are not padding.
        lines: where the examples stand in their file.
    """

    tokens: IntArray
    spans: IntArray
    positions: IntArray
    loss_tokens: int
    real_tokens: int
    lines: tuple[int, ...] = ()


def padded(length: int) -> int:
    """The length that ``length`` is padded to: steps of 8 up to 64, 16 to 128, 32 to 512, then an eighth."""
    for limit, step in ((64, 8), (128, 16), (512, 32)):
        if length <= limit:
            return -(-length // step) * step
    step = 1 << (length.bit_length() - 4)
    return -(-length // step) * step


def collate(examples: Sequence[Example]) -> Batch:
    """Pad examples into one batch."""
    width = padded(max(len(example.tokens) for example in examples) - 1)
    tokens = np.zeros((len(examples), width + 1), np.int32)
    spans = np.zeros((len(examples), 2), np.int32)
    positions: list[int] = []
    for row, example in enumerate(examples):
        tokens[row, : len(example.tokens)] = example.tokens
        spans[row] = (example.start, len(example.tokens) - 1)
        # The input at index i predicts the token at i + 1.
        positions.extend(range(row * width + example.start - 1, row * width + len(example.tokens) - 1))
    flat = np.zeros(padded(len(positions)), np.int32)
    flat[: len(positions)] = positions
    return Batch(
        tokens=tokens,
        spans=spans,
        positions=flat,
        loss_tokens=len(positions),
        real_tokens=sum(len(example.tokens) for example in examples),
        lines=tuple(example.line for example in examples),
    )


class BatchOrder:
    """Endless, deterministic sequence of batches: ``order[position]`` for any position from 0."""

    def __init__(self, examples: Sequence[Example], *, batch_size: int, seed: int) -> None:
        self._examples = examples
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = lru_cache(maxsize=1)(self._make_epoch)

    @property
    def batches_per_epoch(self) -> int:
        return -(-len(self._examples) // self._batch_size)

    def __getitem__(self, position: int) -> Batch:
        epoch, index = divmod(position, self.batches_per_epoch)
        return collate([self._examples[i] for i in self._epoch(epoch)[index]])

    def _make_epoch(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng([self._seed, epoch])
        shuffled = rng.permutation(len(self._examples)).tolist()
        shuffled.sort(key=lambda i: padded(len(self._examples[i].tokens) - 1))
        size = self._batch_size
        batches = [shuffled[i : i + size] for i in range(0, len(shuffled), size)]
        return [batches[i] for i in rng.permutation(len(batches))]


def sequential(examples: Sequence[Example], *, batch_size: int, limit: int) -> Iterator[Batch]:
    """The first ``limit`` batches of the examples, for validation: the same ones every time."""
    chosen = sorted(examples[: batch_size * limit], key=lambda example: len(example.tokens))
    for start in range(0, len(chosen), batch_size):
        yield collate(chosen[start : start + batch_size])
