"""One decode step: mlx-lm's `GenerationBatch` with sampling for the whole batch at once.

What a step costs: SmolLM2-135M in dense float32, 16 rows without adapters, two Zen 5 cores, shares of the time of MLX's
one CPU thread by sampled stacks (``perf``). With mlx-lm's modules as they are (about 106 ms a step) 21 % packs weights
for OpenBLAS, 12 % multiplies them, 20 % waits for OpenBLAS's second thread, 26 % is ``exp`` (SwiGLU, the normalisation
over the vocabulary, softmax), 5 % attention's products; the rest is copies, element-wise kernels and their dispatch.
With blocked weights, no normalisation and SwiGLU without ``exp`` 55 % multiplies weights, at what one core reads, and
10 % is the softmax's ``exp``, of which `base.attention` takes the most (100 tokens of context: 96 ms of CPU time with
MLX's attention, 71 with ours, on one core of a busy machine). Building and dispatching the graph, some 3,700
primitives, takes the Python thread about 0.45 of that time, on the other core.

What adapters add is their bytes. Rank 8 on all linear modules is 9.8 MB a row, 156 MB for 16 rows beside the 540 MB of
weights that a step reads, and 13 to 16 GB/s is what one core reads: 10 to 12 ms of a step whose base takes 56, so no
more than about 0.84 of the base's speed; q and v alone are 29 MB, about 0.96; ranks 4, 8, 16, 64 with a quarter of DoRA
450 MB, almost the base again, about 0.65. CPU time of MLX's threads, steps in turn on a busy machine: bare 56 ms, q and
v 57, all 69 to 70 by any of the ways, mixed ranks 84 to 85: about what the bytes allow. By the clock of a
quiet one, before attention was cheaper: bare 67; all by pages 89, by segments 95, on a second stream 93; mixed ranks
140, 107, 103. Padding to pages and the sum over a row's pages are what segments save there. The second core gains
little: both read the same memory and wait for one another some 300 times a step.

What a chunk of a prompt costs, CPU time on one core: 32 tokens 131 ms, 128 tokens 303 ms; behind 2,000 tokens 211 and
796 ms (with MLX's attention 513 and 1,237): 6 ns for each pair of tokens, head and layer, two of them its ``exp``.
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
