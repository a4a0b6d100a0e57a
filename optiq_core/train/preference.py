"""Losses over pairs of answers, one preferred to the other: DPO (arXiv:2305.18290) and ORPO (arXiv:2403.07691).

A batch holds the preferred answers in its first half of rows and the rejected ones, in the same order, in the second.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_unflatten

from optiq_core.train.loss import Inputs, Loss, hidden_states, model_parts, split_head
from optiq_core.train.schemes import Objective

# Mean log-probabilities closer to 0 than this would have infinite odds.
_SUREST = -1e-6


def preference_loss(*, split: bool, objective: Objective, beta: float) -> Loss:
    """The loss of an objective over pairs, and the number of pairs.

    Args:
        split: whether the model's head can be taken off.
        objective: ``dpo`` or ``orpo``.
        beta: DPO's inverse temperature; ORPO's weight of the odds ratio.
    """
    return _Preference(split, objective, beta)


def preference_loss_for(model: nn.Module, objective: Objective, beta: float) -> Loss:
    """The same for a model, which is asked whether its head can be taken off."""
    return preference_loss(split=split_head(model) is not None, objective=objective, beta=beta)


class _Preference:
    def __init__(self, split: bool, objective: Objective, beta: float) -> None:
        self._split, self._objective, self._beta = split, objective, beta

    def __call__(self, model: nn.Module, inputs: Inputs) -> tuple[mx.array, mx.array]:
        sums, counts = self._logps(model, inputs)
        pairs = sums.size // 2
        if self._objective == "dpo":
            with without_adapters(model):
                reference = mx.stop_gradient(self._logps(model, inputs)[0])
            losses = dpo_losses(sums[:pairs], sums[pairs:], reference[:pairs], reference[pairs:], self._beta)
            value = losses.mean()
        else:
            means = sums / counts
            value = (self._beta * orpo_losses(means[:pairs], means[pairs:]) - means[:pairs]).mean()
        return value, mx.array(pairs)

    def _logps(self, model: nn.Module, inputs: Inputs) -> tuple[mx.array, mx.array]:
        """Log-probability of every row's answer, and its tokens: both ``[2 B]`` in float32."""
        parts = model_parts(model) if self._split else None
        body, head = parts or (model, _same)
        tokens, positions = inputs["tokens"], inputs["positions"]
        hidden = hidden_states(body, model, inputs)
        hidden = hidden.reshape(-1, hidden.shape[-1])[positions]
        targets = tokens[:, 1:].reshape(-1)[positions]
        mask = (mx.arange(positions.size) < inputs["count"]).astype(mx.float32)
        logps = -nn.losses.cross_entropy(head(hidden).astype(mx.float32), targets) * mask
        rows = positions // (tokens.shape[1] - 1)
        zeros = mx.zeros((tokens.shape[0],), mx.float32)
        return zeros.at[rows].add(logps), zeros.at[rows].add(mask)


def dpo_losses(
    chosen: mx.array, rejected: mx.array, reference_chosen: mx.array, reference_rejected: mx.array, beta: float
) -> mx.array:
    """``-log sigmoid(beta ((chosen - rejected) - (their reference)))`` of log-probabilities ``[B]``."""
    return -nn.log_sigmoid(beta * ((chosen - rejected) - (reference_chosen - reference_rejected)))


def orpo_losses(chosen: mx.array, rejected: mx.array) -> mx.array:
    """``-log sigmoid(log odds ratio)`` of mean log-probabilities per token ``[B]``."""
    return -nn.log_sigmoid(_log_odds(chosen) - _log_odds(rejected))


def _log_odds(logp: mx.array) -> mx.array:
    logp = mx.minimum(logp, _SUREST)
    return logp - mx.log(-mx.expm1(logp))


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """While entered, the model is its base: DPO's reference, without a second copy of it."""
    layers: list[tuple[str, Any]] = [(path, module) for path, module in model.named_modules() if "lora_a" in module]
    model.update_modules(tree_unflatten([(path, layer.linear) for path, layer in layers]))
    try:
        yield
    finally:
        model.update_modules(tree_unflatten(layers))


def _same(logits: mx.array) -> mx.array:
    return logits
