"""A step's graph is evaluated piece by piece, so that buffers go when they were read.

MLX allocates for work that it schedules, on the CPU up to a hundred operations before the work runs. Where every
operation writes megabytes, that is more than the backward pass needs. Each evaluation of a piece waits for its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from optiq_core.train.patches import patched_blocks

Stage = tuple[mx.array, ...]

_recorded: ContextVar[list[Stage] | None] = ContextVar("recorded", default=None)


@contextmanager
def recording() -> Iterator[list[Stage]]:
    """Collect the stages that :func:`stage` is told of, in order."""
    stages: list[Stage] = []
    token = _recorded.set(stages)
    try:
        yield stages
    finally:
        _recorded.reset(token)


def stage(*arrays: mx.array) -> None:
    """Arrays that are to be computed before what follows; nothing if nobody records."""
    stages = _recorded.get()
    if stages is not None:
        stages.append(arrays)


@contextmanager
def staged_blocks(model: Any) -> Iterator[None]:
    """While entered, the output of every block is a stage. Enter it last of what patches blocks."""
    with patched_blocks(model, _staged):
        yield


def _staged(call: Any) -> Any:
    def staged(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        found = call(block, *args, **kwargs)
        if isinstance(found, mx.array):
            stage(found)
        return found

    return staged


def gradient_stages(model: Any, grads: Any) -> list[Stage]:
    """The gradients of each block, the last block's first."""
    blocks = {id(block) for block in model.layers}
    prefixes = [f"{path}." for path, module in model.named_modules() if id(module) in blocks]
    leaves = tree_flatten(grads)
    found = {prefix: tuple(grad for name, grad in leaves if name.startswith(prefix)) for prefix in prefixes}
    order = sorted(found, key=lambda prefix: [int(part) for part in prefix.split(".") if part.isdigit()], reverse=True)
    return [found[prefix] for prefix in order if found[prefix]]


def evaluate(stages: list[Stage]) -> None:
    """Compute the stages in order, and let go of each before the next."""
    stages.reverse()
    while stages:
        mx.eval(stages.pop())
