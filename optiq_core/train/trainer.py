"""Trains one adapter: the loop, its reports, its checkpoints and its result."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import mlx.core as mx
import msgspec
import numpy as np

from optiq_core.adapters.write import StoredType, write_adapter
from optiq_core.errors import TrainingError
from optiq_core.train.adapted import AdaptedBase, TrainableBase
from optiq_core.train.batches import Batch, BatchOrder
from optiq_core.train.card import make_card
from optiq_core.train.checkpoint import RunState, restore_best, restore_checkpoint, save_best, save_checkpoint
from optiq_core.train.config import TrainConfig
from optiq_core.train.cpu import training_forms
from optiq_core.train.data import TrainingData
from optiq_core.train.events import CheckpointSaved, Event, Progress, ShortOfMemory, Shrunk, Started, StepPeak, Warned
from optiq_core.train.guard import MemoryGuard, ShortOfMemoryError
from optiq_core.train.layers import exported_tensors
from optiq_core.train.loss import to_inputs
from optiq_core.train.meter import Meter
from optiq_core.train.optim import build_optimizer
from optiq_core.train.parallel import Processes
from optiq_core.train.ranks import distribution
from optiq_core.train.records import TRAIN_FILE
from optiq_core.train.step import InterruptedStepError, make_step, seed_step
from optiq_core.train.validation import is_best, keeps_best, validation_loss

Signal = Literal["go", "cancel", "stop"]
Outcome = Literal["succeeded", "cancelled", "stopped"]
# The stronger one later.
_SIGNALS: tuple[Signal, ...] = ("go", "stop", "cancel")

# A run whose every step is non-finite never recovers: Adam's moments are not updated by skipped steps.
MAX_SKIPPED_IN_A_ROW = 10
# Fields that change what a run reports, not what it computes; two of them only without what depends on them.
_FREE_FIELDS = {"data_path", "iters", "steps_per_report", "steps_per_eval", "steps_per_checkpoint"}
# Fields that change what a step holds in memory, not what it computes: a run may go on with less.
_FREE_FIELDS |= {"micro_batch_size", "grad_checkpoint", "loss_chunk"}


@dataclass(frozen=True)
class TrainResult:
    """How a run ended, after which step, the validation loss of what it wrote, and whether this process wrote it."""

    outcome: Outcome
    step: int
    valid_loss: float | None
    first: bool = True


def train(
    base: TrainableBase,
    config: TrainConfig,
    *,
    data: TrainingData,
    out_dir: Path,
    checkpoint_dir: Path,
    on_event: Callable[[Event], None] = lambda event: None,
    control: Callable[[], Signal] = lambda: "go",
    guard: MemoryGuard | None = None,
    dtype: StoredType = "float32",
    overwrite: bool = False,
) -> TrainResult:
    """Train an adapter and write it to ``out_dir``; goes on from ``checkpoint_dir`` if that holds a checkpoint.

    Args:
        base: its model is changed in place: low-rank layers stay on it.
        config: validated here.
        data: from :func:`optiq_core.train.data.load_data`.
        out_dir: the adapter folder, written staged and renamed when the last step is done.
        checkpoint_dir: holds the newest checkpoint; left in place at the end.
        on_event: called with Started, Progress, CheckpointSaved and Warned.
        control: asked before every step and between its parts; ``cancel`` ends the run, ``stop`` with a checkpoint.
        guard: holds fewer rows at a time, or stops the run with a checkpoint, before memory runs out.
        dtype: how the adapter's tensors are stored.
        overwrite: replace ``out_dir`` if it exists.

    Raises:
        TrainingError: a setting is out of range or does not fit the base or the checkpoint, or the loss
            was not finite for several steps in a row.
    """
    config.validate()
    run = _Run(
        base,
        config,
        data=data,
        checkpoint_dir=checkpoint_dir,
        on_event=on_event,
        control=control,
        guard=guard or MemoryGuard(),
    )
    return run.run(out_dir, dtype, overwrite)


class _Run:
    def __init__(
        self,
        base: TrainableBase,
        config: TrainConfig,
        *,
        data: TrainingData,
        checkpoint_dir: Path,
        on_event: Callable[[Event], None],
        control: Callable[[], Signal],
        guard: MemoryGuard,
    ) -> None:
        self.base, self.config, self.data, self.guard = base, config, data, guard
        self.rows, self.most_tokens = config.rows_at_a_time, 0
        self.checkpoint_dir, self.control = checkpoint_dir, control
        self._tell = on_event
        self.processes = Processes()
        self.keeps_best = keeps_best(config, data)
        self.adapted = AdaptedBase(base, config, data)
        self.model, self.pruner = self.adapted.model, self.adapted.pruner
        self.optimizer = build_optimizer(config)
        self.state = self._restored()

    def _restored(self) -> RunState:
        """The newest checkpoint's state, or a new one; all processes go on from the first one's."""
        fingerprint, restored = self._fingerprint(), None
        if self.processes.first:
            restored = restore_checkpoint(
                self.checkpoint_dir, fingerprint, self.model, self.optimizer, self.pruner.state if self.pruner else None
            )
        state = self.processes.same_counters(restored or RunState(fingerprint=fingerprint))
        if self.processes.size > 1:
            self.optimizer.init(self.model.trainable_parameters())
            self.model.update(self.processes.same_arrays(self.model.trainable_parameters()))
            self.optimizer.state = self.processes.same_arrays(self.optimizer.state)
            if self.pruner:
                self.pruner.state = self.processes.same_arrays(self.pruner.state)
        return state

    def on_event(self, event: Event) -> None:
        """Report an event, once for all processes."""
        if self.processes.first:
            self._tell(event)

    def run(self, out_dir: Path, dtype: StoredType, overwrite: bool) -> TrainResult:
        self.on_event(
            Started(
                step=self.state.step,
                total_steps=self.config.iters,
                trainable_parameters=self.adapted.parameters,
                ranks={str(rank): count for rank, count in distribution(self.adapted.ranks).items()},
            )
        )
        for message in self.data.warnings(self.config.max_seq_length):
            self.on_event(Warned(message))
        with training_forms(self.model, grad_checkpoint=self.config.grad_checkpoint):
            outcome = self._loop()
        self.model.eval()
        if outcome == "succeeded" and self.processes.first:
            if self.keeps_best and self.state.best_step:
                restore_best(self.checkpoint_dir, self.state, self.model)
            self._write(out_dir, dtype, overwrite)
        best = self.state.best_loss if self.state.best_step else self.state.valid_loss
        return TrainResult(outcome=outcome, step=self.state.step, valid_loss=best, first=self.processes.first)

    def _write(self, out_dir: Path, dtype: StoredType, overwrite: bool) -> None:
        tensors = {name: np.array(value.astype(mx.float32)) for name, value in exported_tensors(self.model).items()}
        try:
            card = make_card(self.base, self.config, self.adapted, self.state, self.data)
            write_adapter(out_dir, tensors, card, dtype=dtype, overwrite=overwrite)
        except FileExistsError:
            raise
        except OSError as error:
            raise TrainingError(
                f"{out_dir}: the adapter cannot be written ({error.strerror}); the last checkpoint stays in "
                f"{self.checkpoint_dir}, and the same run goes on from it"
            ) from error

    def _loop(self) -> Outcome:
        config, state = self.config, self.state
        order = BatchOrder(
            self.data.train.examples,
            batch_size=config.batch_size * self.processes.size,
            seed=config.seed,
            pack_length=config.pack_length,
            share=(self.processes.rank, self.processes.size),
        )
        compiled = mx.default_device() == mx.gpu
        take_step = make_step(
            self.model,
            self.optimizer,
            self.adapted.loss,
            compiled=compiled,
            clip_norm=config.clip_norm,
            processes=self.processes,
            on_gradients=self.pruner.rate if self.pruner else None,
        )
        meter = Meter()
        skipped_in_a_row = 0
        self.model.train()
        while state.step < config.iters:
            signal = self._agreed()
            if signal == "cancel":
                return "cancelled"
            if signal == "stop":
                self._save_checkpoint()
                return "stopped"
            started = time.perf_counter()
            try:
                parts = self._parts(order)
            except ShortOfMemoryError as error:
                self._save_checkpoint()
                self.on_event(ShortOfMemory(str(error)))
                return "stopped"
            seed_step(config.seed, state.step + 1)
            self.guard.begin()
            try:
                result = take_step(*map(to_inputs, parts), proceed=self._may_go_on)
            except InterruptedStepError:
                continue
            state.step += 1
            self._note_peak(parts)
            if self.pruner and result.applied:
                self.pruner.prune(state.step)
            read, learned = self.processes.sums(
                [sum(part.real_tokens for part in parts), sum(part.loss_tokens for part in parts)]
            )
            meter.add(result.loss, result.tokens, int(read), result.applied, time.perf_counter() - started)
            if result.applied:
                skipped_in_a_row = 0
                state.trained_tokens += int(learned)
            else:
                skipped_in_a_row += 1
                self._skipped(skipped_in_a_row, parts)
            last = state.step == config.iters
            evaluate = bool(self.data.valid.examples) and (last or state.step % config.steps_per_eval == 0)
            if evaluate:
                state.valid_loss = self._validate()
                last = self._judge_validation() or last
            if evaluate or last or state.step % config.steps_per_report == 0:
                self._report(meter)
            if last:
                break
            if state.step % config.steps_per_checkpoint == 0:
                self._try_checkpoint()
        return "succeeded"

    def _agreed(self) -> Signal:
        """What the run should do: where there are several processes, the strongest that any of them was asked."""
        return _SIGNALS[self.processes.highest(_SIGNALS.index(self.control()))]

    def _may_go_on(self) -> bool:
        """Whether the next part of a step may begin; processes that share a step finish it together."""
        return self.processes.size > 1 or self.control() == "go"

    def _parts(self, order: BatchOrder) -> list[Batch]:
        """The next batch, in parts that fit."""
        step = self.state.step

        def tokens(rows: int) -> int:
            # A process may have no row of a batch.
            return max((part.tokens.size for part in order.parts(step, rows)), default=0)

        rows = self.guard.rows(self.rows, tokens)
        if rows < self.rows:
            self.rows = rows
            self.on_event(Shrunk(rows))
        return order.parts(step, rows)

    def _note_peak(self, parts: Sequence[Batch]) -> None:
        """Report the peak of a step whose largest part is larger than any before."""
        if not parts:
            return
        largest = max(parts, key=lambda part: part.tokens.size)
        peak = self.guard.end(largest.tokens.size)
        if largest.tokens.size > self.most_tokens:
            self.most_tokens = largest.tokens.size
            rows, width = largest.tokens.shape
            self.on_event(StepPeak(rows=rows, width=width - 1, positions=len(largest.positions), peak_bytes=peak))

    def _skipped(self, in_a_row: int, parts: Sequence[Batch]) -> None:
        state = self.state
        state.skipped_steps += 1
        examples = f"{TRAIN_FILE} line {', '.join(str(line) for part in parts for line in part.lines)}"
        if in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"loss or gradient was not finite in {in_a_row} steps in a row, up to step {state.step} ({examples}); "
                f"lower learning_rate (is {self.config.learning_rate:g}) or scale (is {self.config.scale:g})"
            )
        self.on_event(Warned(f"step {state.step}: loss or gradient is not finite; the step was skipped ({examples})"))

    def _judge_validation(self) -> bool:
        """Remember the best weights if they are to be kept; whether the run should end here."""
        state, patience = self.state, self.config.patience
        if not self.keeps_best:
            return False
        if is_best(state):
            if self.processes.first:
                save_best(self.checkpoint_dir, state, self.model)
            return False
        if not patience or state.stale_evals < patience:
            return False
        self.on_event(
            Warned(
                f"step {state.step}: no lower validation loss in {state.stale_evals} validations; "
                f"stopped early, the adapter is that of step {state.best_step}"
            )
        )
        return True

    def _validate(self) -> float | None:
        examples, batch_size = self.data.valid.examples, self.config.batch_size
        return validation_loss(self.model, self.adapted.loss, examples, batch_size=batch_size, rows=self.rows)

    def _report(self, meter: Meter) -> None:
        state, config = self.state, self.config
        state.train_loss = meter.loss if meter.loss is not None else state.train_loss
        self.on_event(
            Progress(
                step=state.step,
                total_steps=config.iters,
                train_loss=state.train_loss or 0.0,
                valid_loss=state.valid_loss,
                tokens_per_second=meter.tokens_per_second,
                trained_tokens=state.trained_tokens,
                seconds_left=(config.iters - state.step) * meter.seconds_per_step,
                peak_memory_bytes=self.guard.peak,
                learning_rate=float(self.optimizer.learning_rate),
            )
        )
        meter.start_interval()
        # Buffers of shapes that went by count against the device's limit on resources.
        mx.clear_cache()

    def _try_checkpoint(self) -> None:
        """A checkpoint that cannot be written is no reason to lose the run: the one before it stays."""
        try:
            self._save_checkpoint()
        except TrainingError as error:
            self.on_event(Warned(f"step {self.state.step}: no checkpoint: {error}"))

    def _save_checkpoint(self) -> None:
        if not self.processes.first:
            return
        extra = self.pruner.state if self.pruner else None
        save_checkpoint(self.checkpoint_dir, self.state, self.model, self.optimizer, extra)
        self.on_event(CheckpointSaved(self.state.step))

    def _fingerprint(self) -> str:
        free = set(_FREE_FIELDS)
        if self.config.lr_schedule != "constant" or self.pruner:
            free.discard("iters")
        if self.keeps_best:
            free.discard("steps_per_eval")
        settings = {key: value for key, value in msgspec.to_builtins(self.config).items() if key not in free}
        content = [settings, self.processes.size, self.adapted.ranks, self.data.digest, self.base.digest]
        return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()
