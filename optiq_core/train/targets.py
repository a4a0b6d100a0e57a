"""What a rank allocation needs to know of a loaded model's modules, measured where it has to be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

from optiq_core.adapters.kinds import linear_dims
from optiq_core.train.batches import Batch, BatchOrder
from optiq_core.train.config import TrainConfig
from optiq_core.train.data import TrainingData
from optiq_core.train.layers import apply_lora, find_targets
from optiq_core.train.loss import Loss, number, to_inputs
from optiq_core.train.ranks import Target, allocate_ranks

PROBE_BATCHES = 8
_PROBE_RANK = 8


def rank_targets(model: Any, metadata: Any, config: TrainConfig) -> list[Target]:
    """The modules that a run adapts, with their dims and their bits.

    Args:
        model: an mlx-lm model without adapters.
        metadata: the base's, for bits.
        config: its ``target_modules`` and ``num_layers``.

    Raises:
        TrainingError: a target matches nothing.
    """
    paths = find_targets(model, config.target_modules, config.num_layers)
    modules = dict(model.named_modules())
    targets = []
    for path in paths:
        inputs, outputs = linear_dims(modules[path])
        targets.append(Target(path, inputs, outputs, bits=metadata.bits_of(path), kl=metadata.kl_of(path)))
    return targets


def ranks_of(
    model: Any, targets: Sequence[Target], config: TrainConfig, *, data: TrainingData | None, loss: Loss
) -> dict[str, int]:
    """Allocate ranks as configured; ``gradient`` probes the model first, on the run's own first batches.

    Args:
        model: an mlx-lm model without adapters; the same afterwards.
        targets: from :func:`rank_targets`.
        config: rank and scheme.
        data: for ``gradient``.
        loss: see :mod:`optiq_core.train.loss`.

    Raises:
        TrainingError: see :func:`optiq_core.train.ranks.allocate_ranks`.
    """
    if config.rank_scaling == "gradient" and data is not None:
        order = BatchOrder(data.train.examples, batch_size=config.batch_size, seed=config.seed)
        batches = (order[i] for i in range(min(PROBE_BATCHES, order.batches_per_epoch)))
        norms = gradient_norms(model, targets, batches, loss, seed=config.seed)
        targets = [replace(t, gradient=norms[t.path]) for t in targets]
    return allocate_ranks(
        targets,
        rank=config.rank,
        scaling=config.rank_scaling,
        pattern=config.rank_pattern,
        budget_like=config.budget_like,
    )


def gradient_norms(
    model: Any, targets: Sequence[Target], batches: Iterable[Batch], loss: Loss, *, seed: int
) -> dict[str, float]:
    """Estimate the Frobenius norm of the loss's gradient at each module's weight, also where that is quantized.

    A fresh low-rank layer has ``B = 0`` and random ``A``, so the gradient at ``B`` is the weight's gradient projected
    to ``A``'s columns: with entries uniform in ``±1/sqrt(in)`` its squared norm is ``rank / (3 in)`` of the weight's,
    in expectation. Gradients are averaged over the batches first, as an optimizer step sees them.

    Args:
        model: without adapters; the same afterwards.
        targets: the modules.
        batches: of training data.
        loss: see :mod:`optiq_core.train.loss`.
        seed: of the projections.
    """
    modules = dict(model.named_modules())
    originals = [(t.path, modules[t.path]) for t in targets]
    mx.random.seed(seed)
    apply_lora(model, {t.path: _PROBE_RANK for t in targets}, scale=1.0, dropout=0.0)
    try:
        model.train()
        value_and_grad = nn.value_and_grad(model, loss)
        sums: dict[str, mx.array] = {}
        for batch in batches:
            _, gradients = value_and_grad(model, to_inputs(batch))
            for name, gradient in tree_flatten(gradients):
                if name.endswith(".lora_b"):
                    path = name.removesuffix(".lora_b")
                    sums[path] = sums[path] + gradient if path in sums else gradient
            mx.eval(sums)
        return {t.path: number(mx.linalg.norm(sums[t.path])) * t.input_dims**0.5 for t in targets}
    finally:
        model.update_modules(tree_unflatten(originals))
        model.eval()
