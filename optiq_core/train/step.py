"""One optimizer step, compiled where that pays, that never lets a non-finite gradient into the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn, optimizers
from mlx.utils import tree_flatten

from optiq_core.train.loss import Inputs, Loss, number


@dataclass(frozen=True)
class StepResult:
    """Loss in nats per token, the tokens it is a mean over, and whether the step was applied."""

    loss: float
    tokens: int
    applied: bool


def seed_step(seed: int, step: int) -> None:
    """Make the random numbers of a step (dropout) a function of seed and step."""
    mx.random.seed(int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]))


def make_gradient(model: nn.Module, loss: Loss) -> Callable[[Inputs], tuple[mx.array, mx.array, mx.array, Any]]:
    """A function from one batch to loss, tokens, whether all is finite, and gradients; nothing is computed yet."""
    value_and_grad = nn.value_and_grad(model, loss)

    def gradient(inputs: Inputs) -> tuple[mx.array, mx.array, mx.array, Any]:
        (value, count), grads = value_and_grad(model, inputs)
        squares = [mx.square(grad.astype(mx.float32)).sum() for _, grad in tree_flatten(grads)]
        finite = mx.isfinite(value) & mx.isfinite(sum(squares, mx.array(0.0)))
        return value, count, finite, grads

    return gradient


def make_step(
    model: nn.Module, optimizer: optimizers.Optimizer, loss: Loss, *, compiled: bool, clip_norm: float = 0.0
) -> Callable[[Inputs], StepResult]:
    """A function that takes one batch and updates the model's trainable parameters.

    Args:
        model: with frozen base and trainable adapters, in training mode.
        optimizer: its state is initialized here.
        loss: see :mod:`optiq_core.train.loss`.
        compiled: trace once per batch shape. Pays on GPUs; on the CPU the first step takes several times longer
            (kernels go through a C++ compiler) and later ones gain nothing, because matrix products dominate.
        clip_norm: longer gradients are shortened to this norm; 0 leaves them.
    """
    optimizer.init(model.trainable_parameters())
    gradient = make_gradient(model, loss)

    def update(grads: Any) -> None:
        if clip_norm:
            grads, _ = optimizers.clip_grad_norm(grads, clip_norm)
        optimizer.update(model, grads)

    if compiled:
        # Differentiating puts traced arrays into the model, so its state is an output of both functions.
        drawn = [model.state, mx.random.state]
        gradient = partial(mx.compile, inputs=drawn, outputs=drawn)(gradient)
        changed = [model.state, optimizer.state]
        update = partial(mx.compile, inputs=changed, outputs=changed)(update)

    def step(inputs: Inputs) -> StepResult:
        value, count, finite, grads = gradient(inputs)
        mx.eval(value, count, finite, grads)
        applied = bool(finite.item())
        if applied:
            update(grads)
            mx.eval(model.trainable_parameters(), optimizer.state)
        return StepResult(loss=number(value), tokens=int(number(count)), applied=applied)

    return step
