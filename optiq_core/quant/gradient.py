"""Sensitivity of all modules from one backward pass.

At the unchanged weights the KL divergence is at its minimum: its gradient is zero, and the first term that a change
``D`` of the weights causes is ``1/2 D^T F D`` with the Fisher information ``F``. Rounding errors of different weights
are nearly independent, so the diagonal of ``F`` is all that counts in expectation. It is the mean of the squared
gradients of the log-likelihood, with tokens drawn from the model's own distribution in place of those of the text: then
the gradients of different positions are uncorrelated, and a whole sequence can be run backwards at once.
(The Fisher diagonal as a quantization objective: Kim et al., SqueezeLLM, arXiv:2306.07629.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from optiq_core.quant.calibration import TokenText
from optiq_core.quant.modules import QuantTarget, quantize_dequantize
from optiq_core.quant.sensitivity import Progress, Sensitivity
from optiq_core.train.loss import number

# Of the estimate's time, what the passes take; the rest goes into quantizing every weight once per option.
_SHARE_OF_PASSES = 0.7


def estimate_kl(
    model: Any,
    targets: Sequence[QuantTarget],
    text: TokenText,
    *,
    store: mx.Dtype,
    seed: int = 0,
    progress: Progress = lambda share, what: None,
) -> Sensitivity:
    """Estimate the KL divergence that every option of every module causes, in nats per token.

    Args:
        model: dense; unchanged afterwards.
        targets: its modules with their options.
        text: every sequence is run forwards and backwards once.
        store: type of scales in the file to come.
        seed: of the tokens that are drawn.
        progress: told how far it is.
    """
    fisher = _fisher_diagonal(model, targets, text, seed, progress)
    found: Sensitivity = {}
    for done, target in enumerate(targets):
        progress(_SHARE_OF_PASSES + (1 - _SHARE_OF_PASSES) * done / len(targets), target.path)
        weight = target.module.weight.astype(mx.float32)
        diagonal = fisher.pop(target.path)
        costs = [
            0.5 * (diagonal * mx.square(quantize_dequantize(weight, option, store) - weight)).sum()
            for option in target.options
        ]
        mx.eval(costs)
        found[target.path] = {o.label: number(c) for o, c in zip(target.options, costs, strict=True)}
    progress(1.0, "estimated")
    return found


def _fisher_diagonal(
    model: Any, targets: Sequence[QuantTarget], text: TokenText, seed: int, progress: Progress
) -> dict[str, mx.array]:
    """Return the diagonal per position, [..., out, in] by module path."""

    def loss(tokens: mx.array, key: mx.array) -> mx.array:
        logits = model(tokens).astype(mx.float32)
        drawn = mx.random.categorical(mx.stop_gradient(logits), key=key)
        return nn.losses.cross_entropy(logits, drawn).sum()

    model.freeze()
    for target in targets:
        target.module.unfreeze(keys=["weight"], recurse=False)
    gradients_of = nn.value_and_grad(model, loss)
    sums: dict[str, mx.array] = {}
    keys = mx.random.split(mx.random.key(seed), text.tokens.shape[0])
    for index, tokens in enumerate(text.batches(1)):
        progress(_SHARE_OF_PASSES * index / text.tokens.shape[0], f"sequence {index + 1} of {text.tokens.shape[0]}")
        _, gradients = gradients_of(tokens, keys[index])
        for name, gradient in tree_flatten(gradients):
            path = name.removesuffix(".weight")
            squared = mx.square(gradient.astype(mx.float32))
            sums[path] = sums[path] + squared if path in sums else squared
        mx.eval(sums)
    model.unfreeze()
    return {path: value / text.size for path, value in sums.items()}
