"""The training queue: jobs from their creation to a served adapter, or a reason why not."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec

from optiq_core.planner.plan import Verdict
from optiq_core.train.config import TrainConfig
from optiq_core.train.events import Progress
from optiq_daemon.errors import ConflictError, InvalidRequestError, NotFoundError, RefusedError
from optiq_daemon.events import EventLog
from optiq_daemon.ingest import Ingest
from optiq_daemon.jobs.admission import JobAdmission
from optiq_daemon.jobs.book import JobBook
from optiq_daemon.jobs.dispatch import Dispatcher
from optiq_daemon.jobs.log_tail import tail
from optiq_daemon.jobs.policy import Pacer, Policy
from optiq_daemon.jobs.publish import Publisher, check_publication
from optiq_daemon.jobs.records import AT_ONCE, MAX_AFTER, PLAIN, PRIORITIES, JobRecord, Publication, Schedule
from optiq_daemon.jobs.recovery import recover
from optiq_daemon.jobs.runner import JobRun
from optiq_daemon.live import LiveTable
from optiq_daemon.names import JobKey, new_job_id
from optiq_daemon.quotas import QuotaGate
from optiq_daemon.registry import Registry
from optiq_daemon.routes import Routes
from optiq_daemon.signals import Changed
from optiq_daemon.states import JobState
from optiq_daemon.store import Store
from optiq_daemon.supervisor import EngineSupervisor
from optiq_daemon.tasks import Tasks
from optiq_daemon.trainer import LOG_NAME
from optiq_daemon.usage import UsageTable


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How the queue works.

    Attributes:
        places: jobs that may run at once.
        slice_s: seconds that a job keeps its place when others are in line, 0 for as long as it takes.
        silence_s: seconds without a sign of life after which a trainer is killed.
        attempts: trainer processes that may die in a row without a new checkpoint.
        memory_bytes: what all running jobs together may take; 0 for what is free.
        load_in: how the base is quantized at load, as the engine has it; empty for as it is.
        policy, latency_s: see :class:`optiq_daemon.jobs.policy.Pacer`.
    """

    places: int = 1
    slice_s: float = 0.0
    silence_s: float = 60.0
    attempts: int = 3
    memory_bytes: int = 0
    load_in: str = ""
    policy: Policy = "share"
    latency_s: float = 0.25


class JobQueue:
    """Jobs of all tenants.

    Args:
        folder: one folder per job below it.
        live: requests that are being served.
        calibration: what finished jobs have taught the planner.
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
        registry: Registry,
        routes: Routes,
        limits: Limits,
        live: LiveTable,
        calibration: Path,
        gate: QuotaGate,
        weight: Callable[[str], float],
        usage: UsageTable,
    ) -> None:
        self._store = store
        self._folder = folder
        self._limits = limits
        self._gate = gate
        self._usage = usage
        self._book = JobBook(store, events, weight)
        self._admission = JobAdmission(
            engine, folder, load_in=limits.load_in, memory_bytes=limits.memory_bytes, calibration=calibration
        )
        self._dispatcher = Dispatcher(
            self._book,
            self._admission,
            engine,
            places=limits.places,
            slice_s=limits.slice_s,
            make_run=self._run,
        )

        self._publisher = Publisher(self._book, ingest, registry, routes, folder)
        self._pacer = Pacer(limits.policy, limits.latency_s, live, lambda: self.running)
        live.check = self._pacer.check_request
        self._tasks = Tasks()

    def start(self) -> None:
        """Take up what was queued or cut off, and begin to work."""
        recover(self._book, self._limits.attempts)
        self._dispatcher.start()
        self._tasks.start(self._pacer.run(), "training policy")

    async def drain(self, seconds: float) -> None:
        """Stop: running trainers save a checkpoint, and their jobs are queued to go on at the next start."""
        await self._tasks.cancel()
        await self._dispatcher.drain(seconds)

    @property
    def changed(self) -> Changed:
        """Told of every change of a job."""
        return self._book.changed

    @property
    def running(self) -> list[JobRun]:
        """Jobs that run now."""
        return list(self._dispatcher.runs.values())

    def create(
        self,
        tenant: str,
        adapter_id: str,
        config: TrainConfig,
        *,
        request_id: str = "",
        schedule: Schedule = AT_ONCE,
        publication: Publication = PLAIN,
    ) -> JobRecord:
        """Queue a job; the same tenant and request id return the same job.

        Raises:
            InvalidRequestError: a field of the schedule or of the publication is wrong.
            NotFoundError: there is no such tenant.
            QuotaError: the tenant has too many open jobs.
        """
        made = self._book.by_request(tenant, request_id) if request_id else None
        if made is not None:
            return made
        if not self._store.has_tenant(tenant):
            raise NotFoundError("tenant", f"tenants/{tenant}", f"there is no tenant {tenant!r}")
        self._check_schedule(tenant, schedule)
        check_publication(publication, config)
        self._gate.check(tenant, "queued_jobs", self.open_count(tenant), retry_seconds=60.0)
        record = JobRecord(
            id=new_job_id(adapter_id),
            tenant=tenant,
            adapter_id=adapter_id,
            request_id=request_id or uuid.uuid4().hex,
            config=config,
            schedule=schedule,
            publication=publication,
        )
        self._book.add(record)
        return record

    async def plan(self, config: TrainConfig) -> Verdict:
        """What a job would take; queues nothing.

        Raises:
            RefusedError: the engine has not said what base there is, or the job cannot be planned.
        """
        return await self._admission.dry_run(config)

    def get(self, key: JobKey) -> JobRecord:
        """One job.

        Raises:
            NotFoundError: there is none.
        """
        return self._book.get(key)

    def page(self, tenant: str, size: int, before: tuple[float, str] | None) -> list[JobRecord]:
        """Jobs of a tenant, newest first."""
        return self._book.page(tenant, size, before)

    def waiting(self) -> int:
        """Open jobs that do not run."""
        return sum(record.state is not JobState.RUNNING for record in self._book.open.values())

    def open_jobs(self, tenant: str) -> list[JobRecord]:
        """A tenant's jobs that have not ended, oldest first."""
        return self._book.of(tenant)

    def open_count(self, tenant: str) -> int:
        """How many of a tenant's jobs have not ended."""
        return len(self._book.of(tenant))

    async def settled(self, tenant: str) -> None:
        """Wait until all jobs of a tenant have ended."""
        while True:
            ticket = self.changed.ticket()
            if not self.open_count(tenant):
                return
            await ticket.wait()

    def watch(self, key: JobKey) -> AsyncIterator[tuple[JobRecord, Progress | None]]:
        """Progress so far, then changes as they come; ends with the job."""
        return self._book.watch(key)

    def log(self, key: JobKey, lines: int, *, follow: bool) -> AsyncIterator[list[str]]:
        """The last lines of the log of a job's trainer; with ``follow`` also what is added until the job ends.

        Raises:
            NotFoundError: there is no such job.
        """
        self.get(key)

        def ended() -> bool:
            record = self._book.find(key)  # it may have been deleted meanwhile
            return record is None or record.state.ended

        return tail(self._folder / key.job / LOG_NAME, lines, ended, follow=follow)

    async def cancel(self, key: JobKey) -> JobRecord:
        """End a job: at once if it does not run, else at its next step. No effect on one that has ended."""
        record = self.get(key)
        if record.state.ended or record.cancel_requested:
            return record
        record.cancel_requested = True
        run = self._dispatcher.runs.get(key)
        if run is not None:
            await run.cancel()
            self._publisher.cancel(record)
        else:
            self._book.set(record, JobState.CANCELLED, "cancelled as asked")
        return record

    async def pause(self, key: JobKey) -> JobRecord:
        """Hold a job: at once if it does not run, else at its next step with a checkpoint. Its memory is given back.

        Raises:
            RefusedError: it has ended.
        """
        record = self.get(key)
        if record.state.ended:
            raise RefusedError(f"{key.name} has ended {record.state.name}", reason="JOB_ENDED")
        if record.pause_requested or record.cancel_requested:
            return record
        record.pause_requested = True
        run = self._dispatcher.runs.get(key)
        if run is None:
            self._book.set(record, JobState.PAUSED, "paused as asked")
        elif run.trainer is not None:
            self._book.set(record, record.state, "pausing")
            await run.stop("pause")
        else:
            # The adapter is made and being published, which is not worth holding up.
            record.pause_requested = False
        return record

    async def resume(self, key: JobKey) -> JobRecord:
        """Let a held job go on; no effect on one that is not held.

        Raises:
            RefusedError: it has ended.
        """
        record = self.get(key)
        if record.state.ended:
            raise RefusedError(f"{key.name} has ended {record.state.name}", reason="JOB_ENDED")
        if not record.pause_requested:
            return record
        record.pause_requested = False
        run = self._dispatcher.runs.get(key)
        if run is not None:
            # It is still stopping: it is queued as soon as it has.
            self._book.set(record, record.state, "goes on at once")
        else:
            self._book.set(record, JobState.QUEUED, f"goes on from step {record.checkpoint_step}")
        return record

    def reschedule(self, key: JobKey, schedule: Schedule, etag: str = "") -> JobRecord:
        """Change when an open job runs; one that runs already is not stopped.

        Raises:
            ConflictError: the etag is not the job's.
            InvalidRequestError: a field is wrong.
            RefusedError: it has ended.
        """
        record = self.get(key)
        if etag and etag != record.etag:
            raise ConflictError("job", key.name, f"{key.name} has changed since it was read; read it again")
        if record.state.ended:
            raise RefusedError(f"{key.name} has ended {record.state.name}", reason="JOB_ENDED")
        self._check_schedule(key.tenant, schedule, record)
        record.schedule = schedule
        self._book.save(record)
        return record

    async def publish(self, key: JobKey) -> JobRecord:
        """Publish the adapter of a job that the gate kept; no effect on one that is published.

        Raises:
            RefusedError: the job has no adapter.
        """
        record = self.get(key)
        adapter = self._folder / key.job / "adapter"
        if record.state is not JobState.SUCCEEDED or not adapter.is_dir():
            raise RefusedError(f"{key.name} is {record.state.name} and has no adapter to publish", reason="NO_ADAPTER")
        if not record.adapter_digest:
            await self._publisher.publish(record, adapter)
        return record

    async def delete(self, key: JobKey) -> None:
        """Remove a job that has ended, with its files.

        Raises:
            RefusedError: it has not ended, or another job comes after it.
        """
        record = self.get(key)
        if not record.state.ended:
            raise RefusedError(
                f"{key.name} is {record.state.name}; cancel it first",
                reason="JOB_NOT_ENDED",
                metadata={"state": record.state.name},
            )
        for other in self._book.of(key.tenant):
            if key.job in other.schedule.after:
                raise RefusedError(f"{other.key.name} comes after {key.name}", reason="JOB_AWAITED")
        self._book.delete(record)
        await asyncio.to_thread(shutil.rmtree, self._folder / key.job, ignore_errors=True)

    def _check_schedule(self, tenant: str, schedule: Schedule, of: JobRecord | None = None) -> None:
        low, high = PRIORITIES
        if not low <= schedule.priority <= high:
            raise InvalidRequestError.of("schedule.priority", f"must be {low} to {high}, is {schedule.priority}")
        if len(schedule.after) > MAX_AFTER:
            raise InvalidRequestError.of("schedule.after", f"at most {MAX_AFTER} jobs, found {len(schedule.after)}")
        for job in schedule.after:
            other = self._book.find(JobKey(tenant, job))
            if other is None:
                raise InvalidRequestError.of("schedule.after", f"there is no job {job!r} in tenant {tenant!r}")
            if of is not None and self._comes_after(other, of):
                raise InvalidRequestError.of("schedule.after", f"{job} comes after {of.id} itself")

    def _comes_after(self, record: JobRecord, other: JobRecord) -> bool:
        """Whether a job is another one, or waits for it."""
        if record.key == other.key:
            return True
        found = (self._book.find(JobKey(record.tenant, job)) for job in record.schedule.after)
        return any(self._comes_after(one, other) for one in found if one is not None and not one.state.ended)

    def _run(self, record: JobRecord) -> JobRun:
        return JobRun(
            record,
            self._folder / record.id,
            book=self._book,
            admission=self._admission,
            usage=self._usage,
            publish=self._publisher.finish,
            silence_s=self._limits.silence_s,
            attempts=self._limits.attempts,
            alone=self._limits.policy == "exclusive",
        )
