"""Rows whose prompts are processed together, on mlx-lm's `PromptProcessingBatch`.

Short prompts share a wave if all of them fit into one chunk; a long prompt has a wave of its own, so that it is never
padded and goes on chunk by chunk.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlx_lm.generate import GenerationBatch, PromptProcessingBatch, StopSequences
from mlx_lm.sample_utils import greedy_sampler

from .prefix import MIN_TOKENS
from .row import Row
from .rows import MixedAdapterModel
from .sampling import make_sampler


@dataclass(eq=False)
class NewRow:
    """A row that is about to be processed.

    Attributes:
        row: the row.
        cache: its caches, one per layer and the one of its adapters.
        known: tokens of its prompt that the caches hold already; at least one is left.
    """

    row: Row
    cache: list[Any]
    known: int

    @property
    def width(self) -> int:
        """Tokens to process before the last one, which starts decoding."""
        return len(self.row.request.prompt) - self.known - 1


class Wave:
    """Prompts under way.

    Args:
        model: what runs.
        rows: its rows.
        stops: tokens that end a turn.
    """

    def __init__(self, model: MixedAdapterModel, rows: Sequence[NewRow], stops: StopSequences) -> None:
        self.rows = [new.row for new in rows]
        self._rest = [list(new.row.request.prompt[new.known :]) for new in rows]
        self._batch = PromptProcessingBatch(
            model=model,
            uids=list(self.rows),
            caches=[new.cache for new in rows],
            tokens=[list(new.row.request.prompt[: new.known]) for new in rows],
            # A chunk's size is chosen here, per step.
            prefill_step_size=sys.maxsize,
            samplers=[make_sampler(row.request.sampling, row.request.constraint) for row in self.rows],
            fallback_sampler=greedy_sampler,
            logits_processors=[() for _ in self.rows],
            stop_sequences=[stops for _ in self.rows],
            max_tokens=[row.request.max_tokens for row in self.rows],
        )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def urgent(self) -> bool:
        """Whether its prompts go before others; they all do, or none."""
        return bool(self.rows) and self.rows[0].request.urgent

    @property
    def nbytes(self) -> int:
        """Bytes of the rows' KV caches."""
        return sum(cache.nbytes for cache in self._batch.prompt_cache)

    @property
    def context(self) -> int:
        """Tokens that the longest row's caches hold."""
        return max((len(tokens) for tokens in self._batch.tokens), default=0)

    @property
    def width(self) -> int:
        """Tokens that the longest row has before its last one."""
        return max((len(rest) for rest in self._rest), default=1) - 1

    def advance(self, tokens: int) -> int:
        """Process up to so many tokens, padding included, but at least one of every row.

        Returns:
            Tokens that were processed, padding included.
        """
        width = min(self.width, max(1, tokens // len(self.rows)))
        if width:
            pieces = [rest[: min(width, len(rest) - 1)] for rest in self._rest]
            self._rest = [rest[len(piece) :] for rest, piece in zip(self._rest, pieces, strict=True)]
            self._batch.prompt(pieces)
        return width * len(self.rows)

    def finished(self) -> list[tuple[Row, list[int], list[Any]]]:
        """Return the rows that wait for decoding, with the tokens that their caches hold, and these.

        Rows whose caches hold less than a prefix cache keeps are left out: a prompt of one token has empty ones.
        """
        return [
            (row, self._batch.tokens[i], self._batch.extract_cache(i))
            for i, row in enumerate(self.rows)
            if len(self._rest[i]) == 1 and len(self._batch.tokens[i]) >= MIN_TOKENS
        ]

    def start_decoding(self) -> GenerationBatch | None:
        """Take out the rows whose prompts are processed but for the last token."""
        done = [i for i, rest in enumerate(self._rest) if len(rest) == 1]
        if not done:
            return None
        last = [self._rest[i] for i in done]
        batch = self._batch if len(done) == len(self.rows) else self._batch.split(done)
        self._keep([i for i in range(len(self.rows)) if i not in done])
        return batch.generate(last)

    def remove(self, rows: set[Row]) -> None:
        """Drop rows."""
        keep = [i for i, row in enumerate(self.rows) if row not in rows]
        if len(keep) < len(self.rows):
            self._batch.filter(keep)
            self._keep(keep)

    def _keep(self, indices: list[int]) -> None:
        self.rows = [self.rows[i] for i in indices]
        self._rest = [self._rest[i] for i in indices]
