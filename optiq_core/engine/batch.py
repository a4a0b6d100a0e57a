"""The rows that run: prompts in waves, and one decode batch, on mlx-lm's batches.

mlx-lm's `BatchGenerator` gives every prompt in progress a chunk of the same size in every step. Here a step has one
budget of prompt tokens for all of them, so that many prompts delay the rows that decode no more than one does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import StopSequences, maybe_set_recommended_wired_limit
from mlx_lm.sample_utils import greedy_sampler

from ..adapters.bank import AdapterBank, SlotHandle
from .decode import DecodeBatch
from .prefix import PrefixCache, common_prefix
from .row import Row
from .rows import MixedAdapterModel, RowAdapters
from .sampling import token_logprob
from .types import TokenLogprob
from .wave import NewRow, Wave

CacheFactory = Callable[[nn.Module], list[Any]]
# Tokens that a step may process, at least one, by the tokens before them and whether they are urgent.
Allowance = Callable[[int, bool], int]
# Rows whose caches hold about the same number of tokens may share a wave: the shorter ones are padded.
_SIMILAR = 64
# Of so many steps with urgent prompts, one begins with the others: they are late, but never left out.
_URGENT_TURNS = 8
# A prompt waits for another that begins the same way if that saves so many tokens.
_WORTH_WAITING = 64
_STEPS_PER_CLEARING = 512


class Drawn(NamedTuple):
    """A row's token, and why the row decodes no further: None, "length" or "stop"."""

    row: Row
    token: int
    finish_reason: str | None
    logprobs: TokenLogprob | None = None


class Spent(NamedTuple):
    """What a step processed of prompts: tokens, padding included, and the tokens before them."""

    chunks: list[tuple[int, int]]

    @property
    def tokens(self) -> int:
        """All of them."""
        return sum(tokens for tokens, _ in self.chunks)

    @property
    def context(self) -> int:
        """Tokens before them, the mean."""
        return sum(tokens * context for tokens, context in self.chunks) // max(self.tokens, 1)

    def share(self, allowed: Allowance, *, urgent: bool) -> float:
        """How much of what is allowed that is."""
        return sum(tokens / allowed(context, urgent) for tokens, context in self.chunks)


class Batch:
    """Prefill and decode. Belongs to the thread that makes it.

    Args:
        model: the base, whose modules belong to ``bank``.
        bank: its adapter bank.
        new_cache: makes the KV caches of one row, one per layer, with mlx-lm's cache interface.
        stops: tokens that end a turn.
        prefixes: where the caches of prompts come from and go to.
    """

    def __init__(
        self,
        model: nn.Module,
        bank: AdapterBank,
        new_cache: CacheFactory,
        stops: StopSequences,
        prefixes: PrefixCache,
    ) -> None:
        self._base, self._bank, self._new_cache, self._stops = model, bank, new_cache, stops
        self._prefixes = prefixes
        self._model = MixedAdapterModel(model, bank)
        # Every row that was inserted and not removed, so that a failing step loses none.
        self._rows: dict[Row, None] = {}
        self._fresh: dict[Row, RowAdapters] = {}
        self._waves: deque[Wave] = deque()
        self._fresh_first = True
        self._urgent_turn = 0
        self._steps = 0
        self._ended: list[tuple[Row, list[int], list[Any]]] = []
        self._decoding = DecodeBatch.empty(self._model, greedy_sampler)
        self._decoding.wants_logprobs = lambda row: row.request.top_logprobs is not None
        self._wired_limit = maybe_set_recommended_wired_limit()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> list[Row]:
        """All rows, the oldest first."""
        return list(self._rows)

    @property
    def decoding(self) -> bool:
        """Whether rows decode."""
        return len(self._decoding) > 0

    @property
    def nbytes(self) -> int:
        """Bytes of all rows' KV caches."""
        return sum(cache.nbytes for cache in self._decoding.prompt_cache) + sum(wave.nbytes for wave in self._waves)

    def insert(self, row: Row, handle: SlotHandle, factor: float) -> None:
        """Take a row in; its prompt is processed from the next :meth:`prefill` on."""
        self._rows[row] = None
        self._fresh[row] = RowAdapters(self._bank, [handle], [factor])

    def remove(self, rows: Iterable[Row]) -> None:
        """Drop rows, whatever they are at; rows that are gone already are ignored."""
        gone = {row for row in rows if row in self._rows}
        if not gone:
            return
        for row in gone:
            del self._rows[row]
            self._fresh.pop(row, None)
        for wave in self._waves:
            wave.remove(gone)
        self._waves = deque(wave for wave in self._waves if wave)
        keep = [i for i, row in enumerate(self._decoding.uids) if row not in gone]
        if len(keep) < len(self._decoding):
            self._decoding.filter(keep)

    def decode(self) -> list[Drawn]:
        """Draw a token for every row that is past its prompt. A row stays until it is removed."""
        drawn = []
        self._steps += 1
        if self._steps % _STEPS_PER_CLEARING == 0:
            # A cache grows by a block every 256 tokens: buffers of sizes that never come again would pile up.
            mx.clear_cache()
        for response in self._decoding.next():
            top = response.uid.request.top_logprobs
            told = None if top is None else token_logprob(response.logprobs, response.token, top)
            drawn.append(Drawn(response.uid, response.token, response.finish_reason, told))
            if response.prompt_cache is not None:
                self._ended.append((response.uid, response.all_tokens, response.prompt_cache))
        return drawn

    def remember(self, row: Row) -> None:
        """Note the caches of a row that decodes and is about to be removed, for :meth:`keep_ended`."""
        if self._prefixes.max_bytes and row in self._decoding.uids:
            index = self._decoding.uids.index(row)
            self._ended.append((row, self._decoding.tokens[index], self._decoding.extract_cache(index)))

    def keep_ended(self) -> None:
        """Keep the caches of rows that ended, for prompts that go on from their answers.

        Waits for the step that is being computed, so its tokens should be handed out first.
        """
        ended, self._ended = self._ended, []
        for row, tokens, caches in ended:
            self._store(row, tokens, caches)

    def prefill(self, allowed: Allowance, begun: Callable[[Row], None]) -> Spent:
        """Process a step's share of prompts; rows whose prompts end start decoding.

        Args:
            allowed: how many tokens, padding included, may be processed behind a context; by whether they are urgent.
                A step with prompts processes one of each at least.
            begun: told of every row whose prompt begins now.

        Returns:
            What was processed.
        """
        urgent = sum(row.request.urgent for row in self._fresh) + sum(wave.urgent for wave in self._waves)
        self._urgent_turn = (self._urgent_turn + 1) % _URGENT_TURNS if urgent else 0
        spent = Spent([])
        for first in (True, False) if self._urgent_turn else (False, True):
            if urgent or not first:
                self._prefill_some(allowed, begun, spent, urgent=first)
        return spent

    def _prefill_some(self, allowed: Allowance, begun: Callable[[Row], None], spent: Spent, *, urgent: bool) -> None:
        def left(context: int) -> int:
            return int(allowed(context, urgent) * (1 - spent.share(allowed, urgent=urgent)))

        # Taking turns, short prompts do not wait for long ones, nor long ones for a stream of short ones.
        for fresh in (self._fresh_first, not self._fresh_first):
            if left(0) <= 0:
                break
            if fresh and (wave := self._fresh_wave(left(0), urgent=urgent)):
                self._waves.append(wave)
                for row in wave.rows:
                    begun(row)
            elif not fresh and (begun_before := next((w for w in self._waves if w.urgent == urgent), None)):
                wave = begun_before
            else:
                continue
            context = wave.context
            spent.chunks.append((self._advance(wave, left(context)), context))
        self._fresh_first = not self._fresh_first

    def close(self) -> None:
        """Give back what the device lent; the rows are forgotten."""
        self._rows.clear()
        if self._wired_limit is not None:
            mx.synchronize()
            mx.set_wired_limit(self._wired_limit)

    def _advance(self, wave: Wave, budget: int) -> int:
        spent = wave.advance(budget)
        for row, tokens, caches in wave.finished() if self._prefixes.max_bytes else ():
            self._store(row, tokens, caches)
        ready = wave.start_decoding()
        if ready is not None:
            self._decoding.extend(ready)
        if not wave:
            self._waves.remove(wave)
        return spent

    def _fresh_wave(self, budget: int, *, urgent: bool) -> Wave | None:
        """Begin with the oldest new row that may begin, and others that fit into the same chunk beside it."""
        chosen: list[NewRow] = []
        under_way = any(wave.urgent == urgent for wave in self._waves)
        for row in list(self._fresh):
            if row.request.urgent != urgent or self._better_later(row, chosen):
                continue
            known = self._prefixes.longest(row.namespace, row.prompt)
            width = len(row.prompt) - known - 1
            if width > budget and (chosen or under_way):
                # Long prompts go one after the other: each ends sooner than if they shared the steps.
                continue
            widest = max(width, *(new.width for new in chosen)) if chosen else width
            if chosen and (widest * (len(chosen) + 1) > budget or abs(known - chosen[0].known) > _SIMILAR):
                continue
            caches, known = self._prefixes.fetch(row.namespace, row.prompt)
            row.cached_tokens = known
            chosen.append(NewRow(row, [*(caches or self._new_cache(self._base)), self._fresh.pop(row)], known))
        return Wave(self._model, chosen, self._stops) if chosen else None

    def _better_later(self, row: Row, chosen: list[NewRow]) -> bool:
        """Whether a prompt that is being processed will soon bring much of this one."""
        if not self._prefixes.max_bytes:
            return False
        others = [new.row for new in chosen] + [other for wave in self._waves for other in wave.rows]
        same = [other for other in others if other.namespace == row.namespace]
        soon = max((common_prefix(other.prompt, row.prompt) for other in same), default=0)
        return soon >= self._prefixes.longest(row.namespace, row.prompt) + _WORTH_WAITING

    def _store(self, row: Row, tokens: list[int], caches: list[Any]) -> None:
        if self._prefixes.max_bytes:
            # The last cache carries the row's adapters.
            self._prefixes.store(row.namespace, tokens, caches[:-1])
