"""One decode step: mlx-lm's `GenerationBatch` with sampling for the whole batch at once.

What a step costs (CPU profile, SmolLM2-135M in float32, 16 rows, a core of its own; see ``optiq bench mixed``) is
measured and written in the module's docstring of `optiq_core.bench.mixed`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx_lm.generate import GenerationBatch

from .sampling import RowSampler, sample_rows


class DecodeBatch(GenerationBatch):
    """Rows that decode. Nothing is normalised over the vocabulary but for rows whose log-probabilities are wanted.

    Attributes:
        wants_logprobs: tells by a row's uid whether its responses carry them; others carry None.
    """

    wants_logprobs: Callable[[Any], bool] = staticmethod(lambda _: False)
    _next_tokens: Any
    _next_logprobs: list[Any]

    def _step(self) -> tuple[list[int], list[Any]]:
        inputs: mx.array = self._next_tokens
        self._current_tokens, self._current_logprobs = inputs, self._next_logprobs
        logits = self.model(inputs[:, None], cache=self.prompt_cache)[:, -1, :]
        samplers = [s if isinstance(s, RowSampler) else None for s in self.samplers]
        self._next_tokens = sample_rows(logits, samplers)
        self._next_logprobs = [
            logits[i] - mx.logsumexp(logits[i]) if self.wants_logprobs(uid) else None for i, uid in enumerate(self.uids)
        ]
        wanted = [logprobs for logprobs in self._next_logprobs if logprobs is not None]
        mx.async_eval(self._next_tokens, wanted)  # type: ignore[no-untyped-call]
        tokens: Any = inputs.tolist()
        for seen, token in zip(self.tokens, tokens, strict=True):
            seen.append(token)
        return tokens, self._current_logprobs
