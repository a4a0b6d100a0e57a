"""One request on its way through the engine: its text, its times, and what it shared its steps with."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .text import TextStream
from .types import EngineRequest, Finished, Reason, Sink, TokenLogprob, Tokens


@dataclass(eq=False)
class Row:
    """A queued or running request. Times are `time.perf_counter()` seconds, 0 for not yet."""

    request: EngineRequest
    sink: Sink
    text: TextStream
    admitted: float = field(default_factory=time.perf_counter)
    prefill_began: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    completion_tokens: int = 0
    cached_tokens: int = 0
    max_rows: int = 0
    max_adapters: int = 0
    steps: int = 0
    cancelled: bool = False
    # Place in the queue that the caller was last told; 0 for none.
    position: int = 0
    prompt: NDArray[np.int64] = field(init=False)
    # What the row decodes with, before the factor: digests and weights; empty for the bare base.
    adapters: tuple[tuple[str, float], ...] = field(init=False)

    def __post_init__(self) -> None:
        self.prompt = np.asarray(self.request.prompt, np.int64)
        self.adapters = self.request.parts

    @property
    def namespace(self) -> tuple[str, tuple[tuple[str, float], ...]]:
        """Everything but the tokens that shapes the row's KV caches, and who may see them."""
        factor = self.request.factor
        return self.request.namespace, tuple((digest, weight * factor) for digest, weight in self.adapters)

    def shared_step(self, rows: int, adapters: int) -> None:
        """Note a decode step that this row took part in."""
        self.steps += 1
        self.max_rows = max(self.max_rows, rows)
        self.max_adapters = max(self.max_adapters, adapters)

    def take(
        self, token: int, finish_reason: str | None, now: float, logprobs: TokenLogprob | None = None
    ) -> Reason | None:
        """Hand out a token of the batch.

        Args:
            token: what the batch drew.
            finish_reason: the batch's: None, "length", or "stop" where the token ended the turn.
            now: when the step ended.
            logprobs: the token's, if the request asked for them.

        Returns:
            Why the row ends with this token; None if it goes on.
        """
        ended_by_model = finish_reason == "stop"
        stopped = False
        if not ended_by_model:
            self.first_token = self.first_token or now
            self.last_token = now
            self.completion_tokens += 1
            text, stopped = self.text.push(token)
            self.sink(Tokens((token,), text, (logprobs,) if logprobs is not None else ()))
        if stopped:
            return Reason.STOP_STRING
        if finish_reason is None:
            return None
        text, stopped = self.text.finish()
        if text:
            self.sink(Tokens((), text))
        if stopped:
            return Reason.STOP_STRING
        return Reason.STOP if ended_by_model else Reason.LENGTH

    def finish(self, reason: Reason) -> None:
        """Tell the caller that the row ended."""
        now = time.perf_counter()
        began = self.prefill_began or now
        first = self.first_token or now
        self.sink(
            Finished(
                reason=reason,
                prompt_tokens=len(self.request.prompt),
                completion_tokens=self.completion_tokens,
                cached_tokens=self.cached_tokens,
                queue_ms=(began - self.admitted) * 1e3,
                prefill_ms=(first - began) * 1e3,
                first_token_ms=(first - self.admitted) * 1e3,
                decode_ms=max(self.last_token - first, 0.0) * 1e3,
                max_rows=self.max_rows,
                max_adapters=self.max_adapters,
                steps=self.steps,
            )
        )
