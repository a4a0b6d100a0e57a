"""Draws the next token of one row from its own random stream.

mlx-lm's samplers share one global random state, so a draw would depend on what else is in the batch, and they compile
one graph per distinct parameter value; here every row has a key of its own and nothing is compiled.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from typing import cast

import mlx.core as mx
from mlx_lm.sample_utils import greedy_sampler

from .types import Sampling, TokenLogprob

_MASK = (1 << 64) - 1
# Odd constant of splitmix64: successive steps of one seed get unrelated keys.
_STEP = 0x9E3779B97F4A7C15


def make_sampler(sampling: Sampling) -> Callable[[mx.array], mx.array]:
    """Return a sampler for one row: log-probabilities [1, vocabulary] to token ids [1].

    Greedy rows share one function, which lets mlx-lm sample a greedy batch in one call.
    """
    if sampling.temperature == 0:
        return greedy_sampler
    seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
    step = 0

    def sample(logprobs: mx.array) -> mx.array:
        nonlocal step
        key = mx.random.key((seed + step * _STEP) & _MASK)
        step += 1
        return mx.random.categorical(restrict(logprobs, sampling) / sampling.temperature, key=key)

    return sample


def restrict(logprobs: mx.array, sampling: Sampling) -> mx.array:
    """Set the log-probabilities that top-p, min-p and top-k exclude to minus infinity; the best token always stays.

    Args:
        logprobs: [rows, vocabulary], normalised.
        sampling: which restrictions apply.
    """
    keep = mx.ones(logprobs.shape, mx.bool_)
    if sampling.min_p > 0:
        keep &= logprobs >= logprobs.max(axis=-1, keepdims=True) + math.log(sampling.min_p)
    vocabulary = logprobs.shape[-1]
    if sampling.top_p < 1 or 0 < sampling.top_k < vocabulary:
        order = mx.argsort(-logprobs, axis=-1)
        allowed = mx.ones(logprobs.shape, mx.bool_)
        if sampling.top_p < 1:
            probabilities = mx.exp(mx.take_along_axis(logprobs, order, axis=-1))
            # A token stays while the mass before it is below top_p: the first one always does.
            allowed &= mx.cumsum(probabilities, axis=-1) - probabilities < sampling.top_p
        if 0 < sampling.top_k < vocabulary:
            allowed &= mx.arange(vocabulary) < sampling.top_k
        keep &= mx.put_along_axis(mx.zeros_like(allowed), order, allowed, axis=-1)
    return mx.where(keep, logprobs, -math.inf)


def token_logprob(logprobs: mx.array, token: int, top: int) -> TokenLogprob:
    """Read a token's log-probability, and those of the most likely tokens.

    Args:
        logprobs: [vocabulary], normalised.
        token: the one that was drawn.
        top: how many of the most likely ones.
    """
    best: list[tuple[int, float]] = []
    if top:
        top = min(top, logprobs.shape[-1])
        ids = mx.argpartition(-logprobs, kth=top - 1)[:top]
        # Equal ones in the order of their ids.
        pairs = zip(cast("list[int]", ids.tolist()), cast("list[float]", logprobs[ids].tolist()), strict=True)
        best = sorted(pairs, key=lambda pair: (-pair[1], pair[0]))
    return TokenLogprob(token, cast("float", logprobs[token].item()), tuple(best))
