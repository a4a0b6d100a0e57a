"""Checkpoints: everything a run needs to go on as if it had never stopped.

A checkpoint is a folder ``step-00000050`` with the low-rank weights and the optimizer's state in one safetensors file
and the counters in ``state.json``. Data order and random numbers are functions of (seed, step), so the step
stands for both; the learning rate's schedule is one of the optimizer's own counter. Folders are staged and renamed;
the newest whole one counts. ``best-00000040`` holds the weights of the lowest validation loss so far.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import msgspec
import numpy as np
from mlx import nn, optimizers
from mlx.utils import tree_flatten, tree_map_with_path
from safetensors.numpy import save

from optiq_core.errors import TrainingError
from optiq_core.files import staged_folder

_TENSORS = "tensors.safetensors"
_STATE = "state.json"
_WEIGHTS, _OPTIMIZER, _EXTRA = "weights.", "optimizer.", "extra."


class RunState(msgspec.Struct, kw_only=True):
    """Counters of a run.

    Attributes:
        step: batches taken so far; the next one is at this position.
        trained_tokens: tokens that carried loss.
        skipped_steps: steps left out because loss or gradient was not finite.
        best_loss, best_step: lowest validation loss so far, and after which step.
        stale_evals: validations since then.
        fingerprint: configuration, data and base that the run belongs to.
    """

    step: int = 0
    trained_tokens: int = 0
    skipped_steps: int = 0
    train_loss: float | None = None
    valid_loss: float | None = None
    best_loss: float | None = None
    best_step: int = 0
    stale_evals: int = 0
    fingerprint: str = ""


def save_checkpoint(
    folder: Path,
    state: RunState,
    model: nn.Module,
    optimizer: optimizers.Optimizer,
    extra: Mapping[str, mx.array] | None = None,
) -> None:
    """Write the checkpoint of ``state.step`` and remove older ones.

    Args:
        extra: other arrays that the run needs to go on.

    Raises:
        TrainingError: it cannot be written, for example because the disk is full; the one before it stays.
    """
    tensors = {_WEIGHTS + name: value for name, value in tree_flatten(model.trainable_parameters())}
    tensors |= {_OPTIMIZER + name: value for name, value in tree_flatten(optimizer.state)}
    tensors |= {_EXTRA + name: value for name, value in (extra or {}).items()}
    target = folder / f"step-{state.step:08d}"
    _write(target, tensors, msgspec.json.encode(state))
    for other in folder.iterdir():
        if other not in (target, _best(folder, state.best_step)) and other.is_dir():
            shutil.rmtree(other, ignore_errors=True)


def save_best(folder: Path, state: RunState, model: nn.Module) -> None:
    """Keep the weights of ``state.best_step``; earlier ones go with the next checkpoint, which no longer needs them.

    Raises:
        TrainingError: they cannot be written.
    """
    tensors = {_WEIGHTS + name: value for name, value in tree_flatten(model.trainable_parameters())}
    _write(_best(folder, state.best_step), tensors, msgspec.json.encode(state))


def restore_best(folder: Path, state: RunState, model: nn.Module) -> None:
    """Put the weights of ``state.best_step`` into the model.

    Raises:
        TrainingError: they are missing or damaged.
    """
    source = _best(folder, state.best_step)
    try:
        tensors = cast(dict[str, mx.array], mx.load(str(source / _TENSORS)))
    except (OSError, RuntimeError) as error:
        raise TrainingError(f"{source}: the best weights cannot be read ({error}); train without keep_best") from error
    model.update(_filled(model.trainable_parameters(), tensors, _WEIGHTS, source))


def has_checkpoint(folder: Path) -> bool:
    """Whether there is a checkpoint to go on from."""
    return _newest(folder) is not None


def restore_checkpoint(
    folder: Path,
    fingerprint: str,
    model: nn.Module,
    optimizer: optimizers.Optimizer,
    extra: dict[str, mx.array] | None = None,
) -> RunState | None:
    """Put the newest checkpoint into model, optimizer and ``extra``; None if there is none.

    Raises:
        TrainingError: it is damaged, or of another configuration, data or base.
    """
    newest = _newest(folder)
    if newest is None:
        return None
    try:
        state = msgspec.json.decode((newest / _STATE).read_bytes(), type=RunState)
        tensors = cast(dict[str, mx.array], mx.load(str(newest / _TENSORS)))
    except (OSError, RuntimeError, msgspec.DecodeError) as error:
        raise TrainingError(f"{newest}: damaged checkpoint ({error}); delete it to start again") from error
    if state.fingerprint != fingerprint:
        raise TrainingError(
            f"{newest}: made with another configuration, data or base; restore those or delete it to start again"
        )
    optimizer.init(model.trainable_parameters())
    model.update(_filled(model.trainable_parameters(), tensors, _WEIGHTS, newest))
    optimizer.state = _filled(optimizer.state, tensors, _OPTIMIZER, newest)
    if extra:
        extra |= _filled(extra, tensors, _EXTRA, newest)
    mx.eval(model.trainable_parameters(), optimizer.state, extra or {})
    return state


def _write(target: Path, tensors: dict[str, mx.array], state: bytes) -> None:
    content = save({name: np.array(value) for name, value in tensors.items()})
    try:
        with staged_folder(target, overwrite=True) as staging:
            # Python's own writing says what went wrong, a full disk for example.
            (staging / _TENSORS).write_bytes(content)
            (staging / _STATE).write_bytes(state)
    except OSError as error:
        raise TrainingError(f"{target}: {len(content):,} bytes cannot be written ({error.strerror})") from error


def _best(folder: Path, step: int) -> Path:
    return folder / f"best-{step:08d}"


def _newest(folder: Path) -> Path | None:
    return max(folder.glob("step-*"), default=None) if folder.is_dir() else None


def _filled(template: Any, tensors: dict[str, mx.array], prefix: str, source: Path) -> Any:
    def value(path: str, current: mx.array) -> mx.array:
        found = tensors.get(prefix + path)
        if found is None or found.shape != current.shape:
            raise TrainingError(
                f"{source / _TENSORS}: '{prefix + path}' must have shape {tuple(current.shape)}, is "
                f"{'missing' if found is None else tuple(found.shape)}; delete the checkpoint to start again"
            )
        return found

    return tree_map_with_path(value, template)
