"""The training queue: one job at a time, from its creation to a served adapter or a reason why not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec

from optiq_core.errors import AdapterError, DataError, OptiqError
from optiq_core.planner.calibration import CalibrationStore, Observation
from optiq_core.planner.plan import Verdict
from optiq_core.train.config import TrainConfig
from optiq_core.train.events import CheckpointSaved, Event, Progress, Started, Warned
from optiq_core.train.records import check_data
from optiq_daemon import planning
from optiq_daemon.errors import NotFoundError, RefusedError, log_unexpected
from optiq_daemon.events import EventLog
from optiq_daemon.fairness import VirtualCounters
from optiq_daemon.ingest import Ingest
from optiq_daemon.jobs import JobRecord, JobTable
from optiq_daemon.names import AdapterKey, JobKey, new_job_id
from optiq_daemon.quotas import QuotaGate
from optiq_daemon.signals import Changed, first_of
from optiq_daemon.states import JobState
from optiq_daemon.store import Store
from optiq_daemon.supervisor import EngineSupervisor
from optiq_daemon.tasks import Tasks
from optiq_daemon.trainer import Outcome, Trainer
from optiq_daemon.usage import UsageTable

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 1.0
LAST_BACKOFF_S = 30.0
# Between looks at whether there is memory for a job that fits in principle.
MEMORY_POLL_S = 15.0


class JobQueue:
    """Jobs of all tenants.

    Args:
        folder: one folder per job below it.
        silence_s: seconds without a sign of life after which a trainer is killed.
        attempts: trainer processes that may die in a row without a new checkpoint.
        load_in: how the base is quantized at load, as the engine has it; empty for as it is.
        memory_bytes: what a job may take; 0 for what is free.
        gate: says how many jobs a tenant may have open.
        weight: a tenant's share of training time, relative to the others.
        usage: where training time is counted.
    """

    def __init__(
        self,
        store: Store,
        events: EventLog,
        engine: EngineSupervisor,
        ingest: Ingest,
        folder: Path,
        *,
        silence_s: float,
        attempts: int,
        load_in: str = "",
        memory_bytes: int = 0,
        gate: QuotaGate,
        weight: Callable[[str], float],
        usage: UsageTable,
    ) -> None:
        self._store = store
        self._events = events
        self._engine = engine
        self._ingest = ingest
        self._folder = folder
        self._silence_s = silence_s
        self._attempts = attempts
        self._load_in = load_in
        self._memory_bytes = memory_bytes
        self._gate = gate
        self._usage = usage
        # Seconds of training, shared like tokens are: the tenant with the least, by its weight, is next.
        self._turns = VirtualCounters(weight)
        self._table = JobTable(store)
        # Jobs that have not ended live here, so that the runner and the RPCs change one object.
        self._open: dict[JobKey, JobRecord] = {}
        self._tasks = Tasks()
        self._runner: asyncio.Task[None] | None = None
        self._draining = False
        self.changed = Changed()
        self.running: JobRecord | None = None
        self.trainer: Trainer | None = None

    def start(self) -> None:
        """Take up what was queued or cut off, and begin to work."""
        waiting = (JobState.QUEUED, JobState.PLANNING, JobState.WAITING, JobState.RUNNING, JobState.PAUSED)
        for record in self._table.in_states(*waiting):
            self._open[record.key] = record
            self._turns.enter(record.tenant)
            if record.cancel_requested:
                self._set(record, JobState.CANCELLED, "cancelled as asked")
            elif record.state is JobState.RUNNING:
                self._died(record, "the daemon ended while it ran")
            elif record.state is not JobState.QUEUED:
                self._set(record, JobState.QUEUED, "")
        self._runner = self._tasks.start(self._run(), "job queue")

    async def drain(self, seconds: float) -> None:
        """Stop: the running trainer saves a checkpoint, and its job is queued to go on at the next start."""
        self._draining = True
        self.changed.notify()
        if self.trainer is not None:
            await self.trainer.stop()
        if self._runner is not None:
            await asyncio.wait([self._runner], timeout=seconds)
        await self._tasks.cancel()

    # What the service calls

    def create(self, tenant: str, adapter_id: str, config: TrainConfig, request_id: str) -> JobRecord:
        """Queue a job; the same tenant and request id return the same job."""
        made = self._table.by_request(tenant, request_id) if request_id else None
        if made is not None:
            return self._open.get(made.key, made)
        if not self._store.has_tenant(tenant):
            raise NotFoundError("tenant", f"tenants/{tenant}", f"there is no tenant {tenant!r}")
        self._gate.check(tenant, "queued_jobs", self.open_count(tenant), retry_seconds=60.0)
        record = JobRecord(
            id=new_job_id(adapter_id),
            tenant=tenant,
            adapter_id=adapter_id,
            request_id=request_id or uuid.uuid4().hex,
            config=config,
        )
        with self._store.transaction():
            self._table.insert(record)
            self._events.append("job.queued", record.key.name, f"trains {adapter_id}", {"adapter_id": adapter_id})
        self._open[record.key] = record
        self._turns.enter(tenant)
        self.changed.notify()
        return record

    async def plan(self, config: TrainConfig) -> Verdict:
        """What a job would take; queues nothing.

        Raises:
            RefusedError: the engine has not said what base there is, or the job cannot be planned.
        """
        if self._engine.base is None:
            raise RefusedError("the engine is still loading the base", reason="BASE_NOT_LOADED")
        with tempfile.TemporaryDirectory(prefix="optiq-plan-") as folder:
            job = Path(folder) / "job.json"
            await asyncio.to_thread(_write, job, self._job_file(config, self._engine.base.path, "plan", "plan"))
            calibration = self._folder / planning.CALIBRATION_NAME
            verdict = await planning.ask(job, limit_bytes=self._memory_bytes, calibration=calibration)
        if verdict is None:
            raise RefusedError("the job cannot be planned; the daemon's log says why", reason="NOT_PLANNED")
        return verdict

    def _job_file(self, config: TrainConfig, base_path: str, adapter_id: str, name: str) -> bytes:
        job = {
            "base_path": base_path,
            "load_in": self._load_in or None,
            "config": msgspec.to_builtins(config),
            "adapter_id": adapter_id,
            "job": name,
        }
        return msgspec.json.encode(job)

    def get(self, key: JobKey) -> JobRecord:
        """One job.

        Raises:
            NotFoundError: there is none.
        """
        record = self._open.get(key) or self._table.find(key)
        if record is None:
            raise NotFoundError("job", key.name, f"there is no job {key.job!r} in tenant {key.tenant!r}")
        return record

    def page(self, tenant: str, size: int, before: tuple[float, str] | None) -> list[JobRecord]:
        """Jobs of a tenant, newest first."""
        return [self._open.get(record.key, record) for record in self._table.page(tenant, size, before)]

    def waiting(self) -> int:
        """Jobs that have not begun."""
        return sum(record.state is not JobState.RUNNING for record in self._open.values())

    def open_jobs(self, tenant: str) -> list[JobRecord]:
        """A tenant's jobs that have not ended, oldest first."""
        return [record for record in self._open.values() if record.tenant == tenant]

    def open_count(self, tenant: str) -> int:
        """How many of a tenant's jobs have not ended."""
        return len(self.open_jobs(tenant))

    async def settled(self, tenant: str) -> None:
        """Wait until all jobs of a tenant have ended."""
        while True:
            ticket = self.changed.ticket()
            if not self.open_count(tenant):
                return
            await ticket.wait()

    async def cancel(self, key: JobKey) -> JobRecord:
        """End a job: at once if it does not run, else at its next step. No effect on one that has ended."""
        record = self.get(key)
        if record.state.ended or record.cancel_requested:
            return record
        record.cancel_requested = True
        if record is self.running and self.trainer is not None:
            self._set(record, record.state, "cancelling")
            await self.trainer.cancel()
        else:
            self._set(record, JobState.CANCELLED, "cancelled as asked")
        return record

    async def delete(self, key: JobKey) -> None:
        """Remove a job that has ended, with its files.

        Raises:
            RefusedError: it has not ended.
        """
        record = self.get(key)
        if not record.state.ended:
            raise RefusedError(
                f"{key.name} is {record.state.name}; cancel it first",
                reason="JOB_NOT_ENDED",
                metadata={"state": record.state.name},
            )
        with self._store.transaction():
            self._table.delete(key.job)
            self._events.append("job.deleted", key.name, "removed with its checkpoints")
        await asyncio.to_thread(shutil.rmtree, self._folder / key.job, ignore_errors=True)

    async def watch(self, key: JobKey) -> AsyncIterator[tuple[JobRecord, Progress | None]]:
        """Progress so far, then changes as they come; ends with the job."""
        sequence, seen = 0, None
        while True:
            ticket = self.changed.ticket()
            while reports := self._table.progress_after(key.job, sequence):
                for sequence, progress in reports:  # noqa: B007 - the cursor of the next query
                    yield self.get(key), progress
            record = self.get(key)
            look = (record.state, record.state_reason, record.attempts)
            if look != seen:
                seen = look
                yield record, None
            if seen[0].ended:
                return
            await ticket.wait()

    # The work

    async def _run(self) -> None:
        while not self._draining:
            ticket = self.changed.ticket()
            record = self._next()
            if record is None:
                await ticket.wait()
                continue
            self.running = record
            try:
                await self._work(record)
            except asyncio.CancelledError:
                if not record.state.ended:
                    self._set(record, JobState.QUEUED, "stopped with the daemon; goes on when it is started again")
                raise
            except Exception as error:
                error_id = log_unexpected(record.key.name, error)
                self._set(record, JobState.FAILED, f"an unexpected error, logged by the daemon as {error_id}")
            finally:
                self.running = self.trainer = None

    def _next(self) -> JobRecord | None:
        """The oldest queued job of the tenant whose turn it is."""
        queued: dict[str, JobRecord] = {}
        for record in self._open.values():
            if record.state is JobState.QUEUED:
                queued.setdefault(record.tenant, record)
        tenant = self._turns.next(queued)
        return queued[tenant] if tenant is not None else None

    async def _work(self, record: JobRecord) -> None:
        if record.state_reason == "":
            self._set(record, JobState.PLANNING, "")
        try:
            await asyncio.to_thread(check_data, record.config.data_path)
        except (DataError, OSError) as error:
            if not record.state.ended:
                self._set(record, JobState.REFUSED, str(error))
            return
        while self._engine.base is None and not record.state.ended and not self._draining:
            tickets = self._engine.changed.ticket(), self.changed.ticket()
            if record.state is not JobState.WAITING:
                self._set(record, JobState.WAITING, "the engine is still loading the base")
                tickets = self._engine.changed.ticket(), self.changed.ticket()
            await first_of(*tickets)
        if record.state.ended or self._engine.base is None:
            return
        await self._prepare(record, self._engine.base.path)
        if await self._admitted(record):
            await self._train(record)

    async def _prepare(self, record: JobRecord, base_path: str) -> None:
        folder = self._folder / record.id
        folder.mkdir(parents=True, exist_ok=True)
        job = self._job_file(record.config, base_path, record.adapter_id, record.key.name)
        await asyncio.to_thread(_write, folder / "job.json", job)

    async def _admitted(self, record: JobRecord) -> bool:
        """Plan the job against what is free; waits where that is too little now, refuses where it will never do.

        A job that cannot be planned runs: the planner must not be what keeps a trainer from working.
        """
        job = self._folder / record.id / "job.json"
        calibration = self._folder / planning.CALIBRATION_NAME
        while not record.state.ended and not self._draining:
            if record.state is not JobState.WAITING:
                self._set(record, JobState.PLANNING, "")
            verdict = await planning.ask(job, limit_bytes=self._memory_bytes, calibration=calibration)
            record.plan = verdict
            if record.state.ended:
                return False
            if verdict is None or verdict.fits:
                return True
            if planning.never_fits(verdict):
                self._set(record, JobState.REFUSED, planning.refusal(verdict))
                return False
            self._set(record, JobState.WAITING, f"for memory: {'; '.join(verdict.reasons)}")
            await self._pause(record, MEMORY_POLL_S)
        return False

    async def _train(self, record: JobRecord) -> None:
        folder = self._folder / record.id
        backoff = FIRST_BACKOFF_S
        while not record.state.ended:
            trainer = Trainer(folder, silence_s=self._silence_s, on_event=lambda event: self._heard(record, event))
            if record.cancel_requested:
                self._set(record, JobState.CANCELLED, "cancelled as asked")
                return
            self.trainer = trainer
            record.attempts += 1
            record.start_time = record.start_time or time.time()
            self._set(record, JobState.RUNNING, "")
            began = time.monotonic()
            try:
                outcome = await trainer.run()
            finally:
                self._count(record, time.monotonic() - began)
            self.trainer = None
            if self._draining and outcome.kind in ("stopped", "died"):
                self._set(record, JobState.QUEUED, "stopped with the daemon; goes on when it is started again")
                return
            await self._ended(record, outcome)
            backoff = await self._pause(record, backoff)
            if self._draining:
                return

    def _count(self, record: JobRecord, seconds: float) -> None:
        self._turns.charge(record.tenant, seconds)
        self._usage.add(record.tenant, record.tenant, record.adapter_id, training_seconds=seconds)

    async def _pause(self, record: JobRecord, seconds: float) -> float:
        """Wait before the next attempt, unless the job ends or the daemon stops; returns the next pause."""
        until = time.monotonic() + seconds
        while not record.state.ended and not self._draining and (left := until - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.changed.ticket().wait(), left)
        return min(2 * seconds, LAST_BACKOFF_S)

    async def _ended(self, record: JobRecord, outcome: Outcome) -> None:
        await asyncio.to_thread(self._learn, record)
        if outcome.kind == "succeeded":
            await self._publish(record, Path(outcome.detail))
        elif outcome.kind == "failed":
            self._set(record, JobState.FAILED, outcome.detail)
        elif outcome.kind == "cancelled":
            self._set(record, JobState.CANCELLED, outcome.detail)
        else:
            self._died(record, outcome.detail)

    def _learn(self, record: JobRecord) -> None:
        """Teach the calibration a peak above the plan; one below may only mean that the longest batch did not come."""
        if record.plan is None or record.progress is None:
            return
        seen = Observation(record.plan.step.peak_bytes, record.progress.peak_memory_bytes)
        if seen.measured > seen.predicted:
            CalibrationStore(self._folder / planning.CALIBRATION_NAME).add(record.plan.ceiling.device, seen)

    async def _publish(self, record: JobRecord, adapter: Path) -> None:
        key = AdapterKey(record.tenant, record.adapter_id)
        try:
            served = await self._ingest.install(key, adapter, "training")
        except AdapterError as error:
            self._set(record, JobState.FAILED, f"the trained adapter was refused: {error}")
        except (OptiqError, OSError) as error:
            self._set(record, JobState.FAILED, f"the trained adapter in {adapter} could not be installed: {error}")
        else:
            record.adapter_digest = served.digest
            self._set(record, JobState.SUCCEEDED, "")

    def _died(self, record: JobRecord, reason: str) -> None:
        record.stalled += 1
        if record.stalled >= self._attempts:
            times = f"{record.stalled} times in a row without a new checkpoint"
            self._set(record, JobState.FAILED, f"{reason} ({times})")
        else:
            self._events.append("job.interrupted", record.key.name, reason, {"attempt": str(record.attempts)})
            self._set(record, JobState.QUEUED, f"starts again from step {record.checkpoint_step}: {reason}")

    def _heard(self, record: JobRecord, event: Event) -> None:
        if isinstance(event, Progress):
            record.progress = event
            with self._store.transaction():
                self._table.add_progress(record.id, event)
                self._table.save(record)
        elif isinstance(event, Started):
            self._table.rewind(record.id, event.step)
            self._note_checkpoint(record, event.step)
            fields = {"step": str(event.step), "trainable_parameters": str(event.trainable_parameters)}
            self._events.append("job.started", record.key.name, f"from step {event.step}", fields)
        elif isinstance(event, CheckpointSaved):
            self._note_checkpoint(record, event.step)
        elif isinstance(event, Warned):
            self._events.append("job.warning", record.key.name, event.message)
        self.changed.notify()

    def _note_checkpoint(self, record: JobRecord, step: int) -> None:
        if step > record.checkpoint_step:
            record.checkpoint_step, record.stalled = step, 0
            self._table.save(record)

    def _set(self, record: JobRecord, state: JobState, reason: str) -> None:
        moved = state is not record.state
        record.state, record.state_reason = state, reason
        if state.ended:
            record.end_time = time.time()
            if self._open.pop(record.key, None) is not None:
                self._turns.leave(record.tenant)
        with self._store.transaction():
            self._table.save(record)
            if moved:
                fields = {"adapter_digest": record.adapter_digest} if record.adapter_digest else {}
                self._events.append(f"job.{state.name.lower()}", record.key.name, reason, fields)
        self.changed.notify()


def _write(path: Path, content: bytes) -> None:
    staging = path.with_suffix(".tmp")
    staging.write_bytes(content)
    staging.replace(path)
