"""The rows that run: mlx-lm's `BatchGenerator` with an adapter per row."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import BatchGenerator, StopSequences

from ..adapters.bank import BASE, AdapterBank
from .row import Row
from .rows import MixedAdapterModel, RowAdapters
from .sampling import make_sampler

CacheFactory = Callable[[nn.Module], list[Any]]


class Batch:
    """Prefill and decode of up to ``max_batch`` rows. Belongs to the thread that makes it.

    Args:
        model: the base, whose modules belong to ``bank``.
        bank: its adapter bank.
        new_cache: makes the KV caches of one row, one per layer, with mlx-lm's cache interface.
        stops: tokens that end a turn.
        max_batch: rows at most.
        prefill_chunk: prompt tokens of a row that are processed between two decode steps.
    """

    def __init__(
        self,
        model: nn.Module,
        bank: AdapterBank,
        new_cache: CacheFactory,
        stops: StopSequences,
        *,
        max_batch: int,
        prefill_chunk: int,
    ) -> None:
        self._model, self._bank, self._new_cache, self._stops = model, bank, new_cache, stops
        self._rows: dict[int, Row] = {}
        self._generator = BatchGenerator(
            MixedAdapterModel(model, bank),
            completion_batch_size=max_batch,
            prefill_batch_size=max_batch,
            prefill_step_size=prefill_chunk,
            stream=mx.default_stream(mx.default_device()),
        )

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> list[Row]:
        """The rows that prefill or decode."""
        return list(self._rows.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all rows' KV caches."""
        return int(self._generator.prompt_cache_nbytes)

    def insert(self, row: Row) -> None:
        """Begin a row's prefill with the next step."""
        request = row.request
        handle = self._bank.handle(request.adapter) if request.adapter else BASE
        cache = self._new_cache(self._model)
        cache.append(RowAdapters(self._bank, [handle], [request.factor]))
        (uid,) = self._generator.insert(
            [list(request.prompt)],
            max_tokens=[request.max_tokens],
            caches=[cache],
            samplers=[make_sampler(request.sampling)],
            stop_sequences=[self._stops],
        )
        self._rows[uid] = row

    def remove(self, rows: Iterable[Row]) -> None:
        """Drop rows, whatever they are at; rows that are gone already are ignored."""
        gone = set(rows)
        uids = [uid for uid, row in self._rows.items() if row in gone]
        if uids:
            self._generator.remove(uids)
            for uid in uids:
                del self._rows[uid]

    def step(self) -> list[tuple[Row, int, str | None]]:
        """Decode one token of every row that is past its prompt, and process a chunk of the others' prompts.

        Returns:
            A row, its token, and why it decodes no further: None, "length" or "stop". It stays until it is removed.
        """
        _, responses = self._generator.next()
        return [(self._rows[r.uid], r.token, r.finish_reason) for r in responses]

    def close(self) -> None:
        """Give back what the device lent; the rows are forgotten."""
        self._rows.clear()
        self._generator.close()
