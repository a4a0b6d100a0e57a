"""How long a decode step takes with each kind of cache at a given context."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx

from ..kv.factory import CachePlan
from .harness import narrate, paired

# Layer to its keys and values [1, Hkv, T, D] of a text.
LayerVectors = Mapping[int, tuple[mx.array, mx.array]]
# Tokens that are written at a time when a cache is filled.
_CHUNK = 512


def step_times(
    model: Any, plans: Mapping[str, CachePlan], vectors: LayerVectors, contexts: Sequence[int], *, rounds: int
) -> dict[str, dict[str, float]]:
    """Median milliseconds of a decode step of one row, contestants in turn.

    Args:
        model: an mlx-lm model.
        plans: caches by name.
        vectors: keys and values of a text; they are repeated to fill a context.
        contexts: tokens in the caches.
        rounds: measured steps of each.

    Returns:
        Milliseconds by name and context.
    """
    times: dict[str, dict[str, float]] = {name: {} for name in plans}
    for context in contexts:
        narrate(f"decode steps at {context} tokens")
        steps: dict[str, Callable[[], float]] = {}
        for name, plan in plans.items():
            steps[name] = _stepper(model, _filled(model, plan, vectors, context))
            steps[name]()
        for name, seconds in paired(steps, rounds=rounds).items():
            times[name][str(context)] = round(statistics.median(seconds) * 1e3, 2)
    return times


def _filled(model: Any, plan: CachePlan, vectors: LayerVectors, context: int) -> list[Any]:
    caches = plan(model)
    for layer, cache in enumerate(caches):
        keys, values = vectors[layer]
        while cache.size() < context:
            n = min(_CHUNK, context - cache.size(), keys.shape[2])
            cache.update_and_fetch(keys[:, :, :n], values[:, :, :n])
        mx.eval(cache.state)
    return caches


def _stepper(model: Any, caches: list[Any]) -> Callable[[], float]:
    token = mx.array([[1]])

    def step() -> float:
        began = time.perf_counter()
        mx.eval(model(token, cache=caches))
        seconds = time.perf_counter() - began
        for cache in caches:
            cache.trim(1)
        mx.eval([cache.state for cache in caches])
        return seconds

    return step
