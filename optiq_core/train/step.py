"""One optimizer step, compiled where that pays, that never lets a non-finite gradient into the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
from mlx import nn, optimizers
from mlx.utils import tree_flatten, tree_map

from optiq_core.train.loss import Inputs, Loss, number
from optiq_core.train.parallel import Processes
from optiq_core.train.stages import evaluate, gradient_stages, recording, stage


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
        stage(value)
        squares = [mx.square(grad.astype(mx.float32)).sum() for _, grad in tree_flatten(grads)]
        finite = mx.isfinite(value) & mx.isfinite(sum(squares, mx.array(0.0)))
        return value, count, finite, grads

    return gradient


def make_part(model: nn.Module, loss: Loss) -> Callable[[Inputs, mx.array, Any], tuple[mx.array, mx.array, Any]]:
    """A function that adds one part of a batch to the sums of those before; nothing is computed yet.

    It takes the part, the tokens with loss (or pairs) of the whole batch, and the gradients so far; it returns the
    part's share of the loss, its tokens, and the gradients with its own added. A mean over the batch is the sum of the
    parts' means weighted by their tokens, so that the last sum is the gradient of the whole batch.
    """
    value_and_grad = nn.value_and_grad(model, loss)

    def part(inputs: Inputs, total: mx.array, sums: Any) -> tuple[mx.array, mx.array, Any]:
        (value, count), grads = value_and_grad(model, inputs)
        stage(value)
        share = count / total
        return value * share, count, tree_map(lambda sofar, grad: sofar + grad * share.astype(grad.dtype), sums, grads)

    return part


class Step(Protocol):
    """Takes a batch; between its parts it asks whether to go on."""

    def __call__(self, *parts: Inputs, proceed: Callable[[], bool] = ...) -> StepResult: ...


class InterruptedStepError(Exception):
    """A step was left between two of its parts; nothing of it was applied."""


def make_step(
    model: nn.Module,
    optimizer: optimizers.Optimizer,
    loss: Loss,
    *,
    compiled: bool,
    clip_norm: float = 0.0,
    processes: Processes | None = None,
    on_gradients: Callable[[Any], None] | None = None,
) -> Step:
    """A function that takes one batch, in one part or several, and updates the model's trainable parameters.

    Args:
        model: with frozen base and trainable adapters, in training mode.
        optimizer: its state is initialized here.
        loss: see :mod:`optiq_core.train.loss`.
        compiled: trace once per batch shape. Pays on GPUs; on the CPU the first step takes several times longer
            (kernels go through a C++ compiler) and later ones gain nothing, because matrix products dominate.
        clip_norm: longer gradients are shortened to this norm; 0 leaves them.
        processes: which share each step's gradient.
        on_gradients: shown every finite gradient before it is applied.
    """
    optimizer.init(model.trainable_parameters())
    gradient, part = make_gradient(model, loss), make_part(model, loss)

    def update(grads: Any) -> None:
        if clip_norm:
            grads, _ = optimizers.clip_grad_norm(grads, clip_norm)
        optimizer.update(model, grads)

    if compiled:
        # Differentiating puts traced arrays into the model, so its state is an output of both functions.
        drawn = [model.state, mx.random.state]
        gradient = partial(mx.compile, inputs=drawn, outputs=drawn)(gradient)
        part = partial(mx.compile, inputs=drawn, outputs=drawn)(part)
        changed = [model.state, optimizer.state]
        update = partial(mx.compile, inputs=changed, outputs=changed)(update)

    def whole(inputs: Inputs) -> tuple[float, int, bool, Any]:
        with recording() as stages:
            value, count, finite, grads = gradient(inputs)
        if not compiled:
            stages += gradient_stages(model, grads)
            evaluate(stages)
        mx.eval(value, count, finite, grads)
        return number(value), int(number(count)), bool(finite.item()), grads

    def summed(parts: Sequence[Inputs], proceed: Callable[[], bool]) -> tuple[float, int, bool, Any]:
        total = mx.array(sum(int(number(each.get("pairs", each["count"]))) for each in parts))
        sums = tree_map(mx.zeros_like, model.trainable_parameters())
        mx.eval(total, sums)
        loss_sum, tokens = 0.0, 0
        for inputs in parts:
            if not proceed():
                raise InterruptedStepError
            with recording() as stages:
                value, count, sums = part(inputs, total, sums)
            if not compiled:
                stages += gradient_stages(model, sums)
                evaluate(stages)
            mx.eval(value, count, sums)
            loss_sum += number(value)
            tokens += int(number(count))
        norm = sum((mx.square(grad.astype(mx.float32)).sum() for _, grad in tree_flatten(sums)), mx.array(0.0))
        return loss_sum, tokens, bool(np.isfinite(loss_sum) and mx.isfinite(norm).item()), sums

    def taken(parts: Sequence[Inputs], proceed: Callable[[], bool]) -> tuple[float, int, bool, Any]:
        if not parts:
            return 0.0, 0, True, tree_map(mx.zeros_like, model.trainable_parameters())
        return whole(parts[0]) if len(parts) == 1 else summed(parts, proceed)

    def step(*parts: Inputs, proceed: Callable[[], bool] = lambda: True) -> StepResult:
        value, tokens, applied, grads = taken(parts, proceed)
        if processes is not None:
            value, tokens, applied, grads = processes.reduce(value, tokens, applied, grads)
        if applied:
            if on_gradients is not None:
                on_gradients(grads)
            update(grads)
            mx.eval(model.trainable_parameters(), optimizer.state)
        return StepResult(loss=value, tokens=tokens, applied=applied)

    return step
