"""One decode step: mlx-lm's `GenerationBatch` with sampling for the whole batch at once.

What a step costs: SmolLM2-135M in dense float32, 16 rows without adapters, two Zen 5 cores, shares of the time of MLX's
one CPU thread by sampled stacks (``perf``). With mlx-lm's modules as they are (about 106 ms a step) 21 % packs weights
for OpenBLAS, 12 % multiplies them, 20 % waits for OpenBLAS's second thread, 26 % is ``exp`` (SwiGLU, the normalisation
over the vocabulary, softmax), 5 % attention's products; the rest is copies, element-wise kernels and their dispatch.
With blocked weights, no normalisation and SwiGLU without ``exp`` (about 60 to 70 ms) 55 % multiplies weights, which now
come at what one core reads, 5 % is attention's products, 10 % ``exp``, 5 % copies. Building and dispatching the graph,
some 3,700 primitives, takes the Python thread about 0.45 of that time, on the other core.

Rank-8 adapters on all linear modules add 10 MB a row to the 540 MB of weights that a step reads: 156 MB for 16 rows, at
13 to 16 GB/s of one core. Steps in turn in one process, medians of 22, two cores: bare 67 ms; such adapters gathered by
pages 89, by segments on the same stream 95, on a second stream 93. The second core gains little: both read the same
memory and wait for one another some 300 times a step. Ranks 4, 8, 16, 64 with a quarter of DoRA add 450 MB, almost the
base again: by pages 140, by segments 107, on a second stream 103. Padding to pages and the sum over a row's pages are
what segments save there.

What a chunk of a prompt costs: 32 tokens 105 ms, 128 tokens 333 ms; behind 2,000 tokens 441 and 1,144 ms, because the
softmax of every layer and head takes an ``exp`` of 18 ns for each pair of tokens.
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
        self._follow(logits, inputs, samplers)
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

    @staticmethod
    def _follow(logits: mx.array, inputs: mx.array, samplers: list[RowSampler | None]) -> None:
        """Tell constraints which tokens were drawn before, while the device computes what they will mask."""
        bound = [(i, s.constraint) for i, s in enumerate(samplers) if s is not None and s.constraint is not None]
        if not bound:
            return
        mx.async_eval(logits)  # type: ignore[no-untyped-call]
        drawn: Any = inputs.tolist()
        for row, constraint in bound:
            constraint.take(drawn[row])
