"""Turns examples into batches whose shapes come from a small set, in an order that can be resumed.

The order is a function of (seed, position) alone: a checkpoint needs only the number of batches taken so far.
Each epoch shuffles the examples, sorts them by padded length, cuts the result into batches and shuffles those,
so batches hold examples of like length but are different ones in every epoch. The last batch of an epoch may be
smaller; since it always holds the longest examples, it adds one shape, not one per length.

With packing, rows of several examples take the place of examples: they are put together once, best fit first.
"""

from __future__ import annotations

from bisect import bisect_left, insort
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
        segments: ``[B, T]``, with packing the number in its row of the example that each input belongs to, 0 for
            padding; ``spans`` mean nothing then.
        pairs: of preferred and rejected answers, 0 without preferences.
        lines: where the examples stand in their file.
    """

    tokens: IntArray
    spans: IntArray
    positions: IntArray
    loss_tokens: int
    real_tokens: int
    segments: IntArray | None = None
    pairs: int = 0
    lines: tuple[int, ...] = ()


def padded(length: int) -> int:
    """The length that ``length`` is padded to: steps of 8 up to 64, 16 to 128, 32 to 512, then an eighth."""
    for limit, step in ((64, 8), (128, 16), (512, 32)):
        if length <= limit:
            return -(-length // step) * step
    step = 1 << (length.bit_length() - 4)
    return -(-length // step) * step


def collate(examples: Sequence[Example]) -> Batch:
    """Pad examples into one batch; where they have rejected answers, those follow in as many rows more."""
    lines = tuple(example.line for example in examples)
    examples = [*examples, *(example.rejected for example in examples if example.rejected)]
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
        pairs=len(examples) - len(lines),
        lines=lines,
    )


def collate_packed(rows: Sequence[Sequence[Example]]) -> Batch:
    """Put examples into rows, one after the other, and pad the rows."""
    width = padded(max(sum(len(example.tokens) for example in row) for row in rows) - 1)
    tokens = np.zeros((len(rows), width + 1), np.int32)
    segments = np.zeros((len(rows), width + 1), np.int32)
    positions: list[int] = []
    for at, row in enumerate(rows):
        end = 0
        for number, example in enumerate(row, start=1):
            begin, end = end, end + len(example.tokens)
            tokens[at, begin:end] = example.tokens
            segments[at, begin:end] = number
            # An example's last input would predict the next one's first token: it carries no loss.
            positions.extend(range(at * width + begin + example.start - 1, at * width + end - 1))
    flat = np.zeros(padded(len(positions)), np.int32)
    flat[: len(positions)] = positions
    members = [example for row in rows for example in row]
    return Batch(
        tokens=tokens,
        spans=np.zeros((len(rows), 2), np.int32),
        positions=flat,
        loss_tokens=len(positions),
        real_tokens=sum(len(example.tokens) for example in members),
        segments=segments[:, :-1],
        lines=tuple(example.line for example in members),
    )


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of examples by rows: best fit, longest first. What is longer than a row gets one of its own."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect_left(room, (lengths[index], 0))
        if at < len(room):
            free, row = room.pop(at)
            rows[row].append(index)
        else:
            free, row = capacity, len(rows)
            rows.append([index])
        insort(room, (free - lengths[index], row))
    return rows


class BatchOrder:
    """Endless, deterministic sequence of batches: ``order[position]`` for any position from 0.

    Args:
        examples: what to train on.
        batch_size: rows of a batch.
        seed: of the order.
        pack_length: tokens of a row that several examples share; 0 gives each its own row.
        share: which of how many shares of each batch to give.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        batch_size: int,
        seed: int,
        pack_length: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self._examples = examples
        self._share = share
        lengths = [example.length for example in examples]
        self._rows = pack(lengths, pack_length) if pack_length else [[i] for i in range(len(examples))]
        self._lengths = [sum(lengths[i] for i in row) for row in self._rows]
        self._packed = pack_length > 0
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = lru_cache(maxsize=1)(self._make_epoch)

    @property
    def batches_per_epoch(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    def __getitem__(self, position: int) -> Batch:
        return self.parts(position, self._batch_size)[0]

    def parts(self, position: int, rows: int) -> list[Batch]:
        """This share of the batch at a position in parts of so many rows, each padded for itself.

        Rows of like length come together. A share of the last batch of an epoch may have no row, and so no part.
        """
        epoch, index = divmod(position, self.batches_per_epoch)
        rank, shares = self._share
        chosen = self._epoch(epoch)[index][rank::shares]
        batch = [[self._examples[i] for i in self._rows[row]] for row in chosen]
        parts = [batch[start : start + rows] for start in range(0, len(batch), rows)]
        return [collate_packed(part) if self._packed else collate([row[0] for row in part]) for part in parts]

    def _make_epoch(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng([self._seed, epoch])
        shuffled = rng.permutation(len(self._rows)).tolist()
        shuffled.sort(key=lambda i: padded(self._lengths[i] - 1))
        size = self._batch_size
        batches = [shuffled[i : i + size] for i in range(0, len(shuffled), size)]
        return [batches[i] for i in rng.permutation(len(batches))]


def sequential(examples: Sequence[Example], *, batch_size: int, limit: int) -> Iterator[Batch]:
    """The first ``limit`` batches of the examples, for validation: the same ones every time."""
    chosen = sorted(examples[: batch_size * limit], key=lambda example: example.length)
    for start in range(0, len(chosen), batch_size):
        yield collate(chosen[start : start + batch_size])
