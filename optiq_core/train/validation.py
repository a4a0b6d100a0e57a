"""The validation loss, and what a run does about it: keep the best weights, stop early."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mlx import nn

from optiq_core.errors import TrainingError
from optiq_core.train.batches import sequential
from optiq_core.train.checkpoint import RunState
from optiq_core.train.config import TrainConfig
from optiq_core.train.data import Example, TrainingData
from optiq_core.train.loss import Loss, number, to_inputs
from optiq_core.train.records import TRAIN_FILE, VALID_FILE

# Batches of one validation, mlx-lm's default; keeps its cost independent of the size of valid.jsonl.
VALID_BATCHES = 25


def keeps_best(config: TrainConfig, data: TrainingData) -> bool:
    """Whether the weights of the lowest validation loss are kept.

    Raises:
        TrainingError: they are to be, and there is nothing to validate on.
    """
    keeps = config.keep_best or config.patience > 0
    if keeps and not data.valid.examples:
        field = "patience" if config.patience else "keep_best"
        raise TrainingError(f"{field}: needs validation examples, in {VALID_FILE} beside {TRAIN_FILE}", field=field)
    return keeps


def validation_loss(
    model: nn.Module, loss: Loss, examples: Sequence[Example], *, batch_size: int, rows: int
) -> float | None:
    """Mean loss per token over the first batches of the validation file, None if it is not finite.

    Args:
        model: left in training mode.
        loss: the objective.
        examples: of the validation file, not empty.
        batch_size: of training; 25 times as many examples are read.
        rows: held in memory at a time.
    """
    model.eval()
    mean, _ = mean_loss(model, loss, examples[: batch_size * VALID_BATCHES], rows=rows)
    model.train()
    return mean if np.isfinite(mean) else None


def mean_loss(model: nn.Module, loss: Loss, examples: Sequence[Example], *, rows: int) -> tuple[float, int]:
    """Mean loss per token over all examples, ``rows`` of them at a time, and how many tokens carry it."""
    total, tokens = 0.0, 0
    for batch in sequential(examples, batch_size=rows, limit=len(examples)):
        value, count = loss(model, to_inputs(batch))
        total += number(value) * number(count)
        tokens += int(number(count))
    return total / tokens, tokens


def is_best(state: RunState) -> bool:
    """Whether the last validation was the lowest; counts those that were not since."""
    if state.valid_loss is not None and (state.best_loss is None or state.valid_loss < state.best_loss):
        state.best_loss, state.best_step, state.stale_evals = state.valid_loss, state.step, 0
        return True
    state.stale_evals += 1
    return False
