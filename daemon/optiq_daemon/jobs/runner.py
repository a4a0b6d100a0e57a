"""One life of a job in a trainer process, and what becomes of the job afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

import msgspec

from optiq_core.planner.calibration import CalibrationStore, Observation
from optiq_core.train.events import (
    CheckpointSaved,
    Event,
    Progress,
    ShortOfMemory,
    Shrunk,
    Started,
    StepPeak,
    Warned,
)
from optiq_daemon.errors import log_unexpected
from optiq_daemon.jobs.admission import JobAdmission
from optiq_daemon.jobs.book import JobBook
from optiq_daemon.jobs.records import JobRecord
from optiq_daemon.jobs.recovery import AGAIN, died, killed, out_of_memory, reduce
from optiq_daemon.states import JobState
from optiq_daemon.trainer import Outcome, Trainer
from optiq_daemon.usage import UsageTable

# Between two writes of the time that a running job has taken.
CHARGE_S = 1.0

HOLDS = "holds while requests are served"

Stop = Literal["", "pause", "yield", "drain"]
Publish = Callable[[JobRecord, Path], Awaitable[None]]


class JobRun:
    """A job that runs.

    Args:
        folder: of the job.
        silence_s: seconds without a sign of life after which the trainer is killed.
        attempts: trainer processes that may die in a row without a new checkpoint.
        publish: takes the adapter of a job that succeeded, and ends the job.
        alone: nothing is served meanwhile.
    """

    def __init__(
        self,
        record: JobRecord,
        folder: Path,
        *,
        book: JobBook,
        admission: JobAdmission,
        usage: UsageTable,
        publish: Publish,
        silence_s: float,
        attempts: int,
        alone: bool,
    ) -> None:
        self.record = record
        self.trainer: Trainer | None = Trainer(folder, silence_s=silence_s, on_event=self._heard, alone=alone)
        self._book = book
        self._admission = admission
        self._usage = usage
        self._publish = publish
        self._attempts = attempts
        self._began = self._charged = time.monotonic()
        self._stop: Stop = ""
        self._short = ""
        self._peak: StepPeak | None = None

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    @property
    def pid(self) -> int | None:
        """Of the trainer, if there is one."""
        child = self.trainer.child if self.trainer is not None else None
        return child.pid if child is not None else None

    async def run(self) -> None:
        """Run the trainer to its end and say what becomes of the job."""
        record = self.record
        try:
            await self._run()
        except asyncio.CancelledError:
            if not record.state.ended:
                self._book.set(record, JobState.QUEUED, AGAIN)
            raise
        except Exception as error:
            error_id = log_unexpected(record.key.name, error)
            self._book.set(record, JobState.FAILED, f"an unexpected error, logged by the daemon as {error_id}")

    async def _run(self) -> None:
        record, trainer = self.record, self.trainer
        assert trainer is not None
        await self._admission.write_job(record)
        record.attempts += 1
        record.start_time = record.start_time or time.time()
        self._book.set(record, JobState.RUNNING)
        try:
            outcome = await trainer.run()
        finally:
            self.trainer = None
            self.charge()
        await asyncio.to_thread(self._learn, outcome)
        await self._ended(outcome)
        if record.pause_requested and not record.state.ended:
            self._book.set(record, JobState.PAUSED, f"paused as asked; goes on from step {record.checkpoint_step}")

    async def stop(self, why: Stop) -> None:
        """Have the trainer save a checkpoint and end; the job goes on later."""
        if self.trainer is not None and not self._stop:
            self._stop = why
            await self.trainer.stop()

    async def set_pace(self, pace: float) -> None:
        """Let the trainer work for this share of the time; 0 holds it at its next step, or part of one."""
        if self.trainer is None or not await self.trainer.set_pace(pace):
            return
        if self.record.state is JobState.RUNNING and self.record.state_reason in ("", HOLDS):
            self._book.set(self.record, JobState.RUNNING, HOLDS if pace == 0 else "")

    async def cancel(self) -> None:
        """Have the trainer end at its next step."""
        if self.trainer is not None:
            self._book.set(self.record, self.record.state, "cancelling")
            await self.trainer.cancel()

    def charge(self) -> None:
        """Count the training time since the last call."""
        now = time.monotonic()
        record, seconds = self.record, now - self._charged
        if self.trainer is not None and seconds < CHARGE_S:
            return
        self._charged = now
        self._book.turns.charge(record.tenant, seconds)
        self._usage.add(record.tenant, record.tenant, record.adapter_id, training_seconds=seconds)

    async def _ended(self, outcome: Outcome) -> None:
        record, book = self.record, self._book
        if outcome.kind == "succeeded":
            await self._publish(record, Path(outcome.detail))
        elif outcome.kind == "failed":
            book.set(record, JobState.FAILED, outcome.detail)
        elif outcome.kind == "cancelled" or record.cancel_requested:
            book.set(record, JobState.CANCELLED, "cancelled as asked")
        elif self._stop == "drain":
            book.set(record, JobState.QUEUED, AGAIN)
        elif outcome.kind == "died":
            died(book, record, outcome.detail, self._attempts)
        elif outcome.kind == "killed":
            killed(book, record, outcome.detail, self._attempts)
        elif outcome.kind == "memory":
            out_of_memory(book, record, outcome.detail, outcome.at_bytes, self._attempts)
        elif self._short:
            self._reduce()
        else:
            book.set(record, JobState.QUEUED, f"goes on from step {record.checkpoint_step}")

    def _reduce(self) -> None:
        """Not even one row fitted beside what there is now: go on with less, as soon as that fits."""
        record = self.record
        reduced = record.reduced.smaller(record.config)
        if reduced is not None:
            reduce(self._book, record, reduced, self._short)
        record.planned = False
        self._book.set(record, JobState.QUEUED, f"goes on from step {record.checkpoint_step}: {self._short}")

    def _learn(self, outcome: Outcome) -> None:
        """Teach the calibration the peak of a step that had the shape of the plan, and any above the plan.

        One below of another shape may only mean that the longest batch has not come.
        """
        record, peak = self.record, self._peak
        if record.plan is None:
            return
        step, store = record.plan.step, CalibrationStore(self._admission.calibration)
        predicted, device = step.peak_bytes, record.plan.ceiling.device
        if peak is not None:
            same = (peak.rows, peak.width, peak.positions) == (step.rows, step.width, step.positions)
            if same or peak.peak_bytes > predicted:
                store.add(device, Observation(predicted, peak.peak_bytes))
        if outcome.kind in ("memory", "killed"):
            # It was promised to stay within its bound, and perhaps did not fit.
            store.add(device, Observation(predicted, max(outcome.at_bytes, record.plan.bound_bytes), died=True))

    def _heard(self, event: Event) -> None:
        record, book = self.record, self._book
        if isinstance(event, Progress):
            book.report(record, event)
        elif isinstance(event, Started):
            book.rewind(record, event.step)
            self._note_checkpoint(event.step)
            fields = {"step": str(event.step), "trainable_parameters": str(event.trainable_parameters)}
            book.events.append("job.started", record.key.name, f"from step {event.step}", fields)
        elif isinstance(event, StepPeak):
            self._peak = record.step_peak = event
        elif isinstance(event, Shrunk):
            reduced = msgspec.structs.replace(record.reduced, micro_batch_size=event.rows)
            reduce(book, record, reduced, "the next step would have come too near to the ceiling")
            record.planned = True
            book.save(record)
        elif isinstance(event, ShortOfMemory):
            self._short = event.reason
        elif isinstance(event, CheckpointSaved):
            self._note_checkpoint(event.step)
        elif isinstance(event, Warned):
            book.events.append("job.warning", record.key.name, event.message)
        book.changed.notify()

    def _note_checkpoint(self, step: int) -> None:
        if step > self.record.checkpoint_step:
            self.record.checkpoint_step, self.record.stalled = step, 0
            self._book.save(self.record)
