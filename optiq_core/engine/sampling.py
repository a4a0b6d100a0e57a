"""Draws the next tokens of a batch, every row from its own random stream.

mlx-lm's samplers share one global random state, so a draw would depend on what else is in the batch, and they compile
one graph per distinct parameter value; here every row has a key of its own and nothing is compiled. All rows are drawn
in one call: the greedy ones by their largest logit, which needs no normalisation over the vocabulary.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from typing import cast

import mlx.core as mx
import numpy as np
from mlx_lm.sample_utils import greedy_sampler

from .constraint import Constraint
from .types import Sampling, TokenLogprob

_MASK = (1 << 64) - 1
# Odd constant of splitmix64: successive steps of one seed get unrelated keys.
_STEP = 0x9E3779B97F4A7C15


class RowSampler:
    """The random stream of one row that does not just take the likeliest token.

    Args:
        sampling: how to draw; a seed is chosen if it has none.
        constraint: what the row may say; None for anything.
    """

    def __init__(self, sampling: Sampling, constraint: Constraint | None = None) -> None:
        self.sampling = sampling
        self.constraint = constraint
        self._seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        self._step = 0

    def next_key(self) -> mx.array:
        """Return the random key of the next draw."""
        key = mx.random.key((self._seed + self._step * _STEP) & _MASK)
        self._step += 1
        return key

    def __call__(self, logits: mx.array) -> mx.array:
        """Draw from the logits of this row, [1, vocabulary], normalised or not; returns token ids [1]."""
        return sample_rows(logits, [self])


def make_sampler(sampling: Sampling, constraint: Constraint | None = None) -> Callable[[mx.array], mx.array]:
    """Return a sampler for one row: logits [1, vocabulary] to token ids [1]; greedy free rows share one function."""
    free = sampling.temperature == 0 and constraint is None
    return greedy_sampler if free else RowSampler(sampling, constraint)


def sample_rows(logits: mx.array, samplers: Sequence[RowSampler | None]) -> mx.array:
    """Draw a token for every row.

    Args:
        logits: [rows, vocabulary].
        samplers: a stream per row; None takes the likeliest token of all.

    Returns:
        Token ids [rows] uint32. A row's draw depends on its own logits, seed, step and constraint alone.
    """
    logits = _constrained(logits, samplers)
    random = {i: s for i, s in enumerate(samplers) if s is not None and s.sampling.temperature > 0}
    drawing, streams = list(random), list(random.values())
    greedy = mx.argmax(logits, axis=-1) if len(drawing) < len(samplers) else mx.zeros(len(samplers), mx.uint32)
    if not drawing:
        return greedy
    chosen = logits if len(drawing) == len(samplers) else logits[mx.array(drawing)]
    keys = mx.stack([stream.next_key() for stream in streams])
    allowed = restrict(chosen.astype(mx.float32), [stream.sampling for stream in streams])
    scaled = allowed / _column([stream.sampling.temperature for stream in streams])
    drawn = mx.vmap(lambda row, key: mx.random.categorical(row, key=key))(scaled, keys)
    if len(drawing) == len(samplers):
        return drawn
    greedy[mx.array(drawing)] = drawn
    return greedy


def _constrained(logits: mx.array, samplers: Sequence[RowSampler | None]) -> mx.array:
    """Set the logits that rows' constraints exclude to minus infinity."""
    bound = {i: s.constraint for i, s in enumerate(samplers) if s is not None and s.constraint is not None}
    if not bound:
        return logits
    allowed = np.ones(logits.shape, np.bool_)
    for row, constraint in bound.items():
        allowed[row] = constraint.allowed(logits.shape[-1])
    return mx.where(mx.array(allowed), logits, mx.array(-math.inf, logits.dtype))


def restrict(logits: mx.array, samplings: Sequence[Sampling]) -> mx.array:
    """Set the logits that top-p, min-p and top-k exclude to minus infinity; the likeliest token always stays.

    Args:
        logits: [rows, vocabulary], normalised or not.
        samplings: which restrictions apply to each row.
    """
    keep = None
    if any(sampling.min_p > 0 for sampling in samplings):
        # The log of 0 keeps everything.
        floors = _column([math.log(s.min_p) if s.min_p > 0 else -math.inf for s in samplings])
        keep = logits >= logits.max(axis=-1, keepdims=True) + floors
    vocabulary = logits.shape[-1]
    if any(s.top_p < 1 or 0 < s.top_k < vocabulary for s in samplings):
        order = mx.argsort(-logits, axis=-1)
        probabilities = mx.softmax(mx.take_along_axis(logits, order, axis=-1), axis=-1)
        # A token stays while the mass before it is below top_p: the first one always does.
        nucleus = _column([s.top_p if s.top_p < 1 else math.inf for s in samplings])
        allowed = mx.cumsum(probabilities, axis=-1) - probabilities < nucleus
        most = _column([s.top_k if 0 < s.top_k < vocabulary else vocabulary for s in samplings])
        allowed &= mx.arange(vocabulary) < most
        kept = mx.put_along_axis(mx.zeros_like(allowed), order, allowed, axis=-1)
        keep = kept if keep is None else keep & kept
    return logits if keep is None else mx.where(keep, logits, -math.inf)


def _column(values: Sequence[float]) -> mx.array:
    return mx.array(list(values), mx.float32)[:, None]


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
