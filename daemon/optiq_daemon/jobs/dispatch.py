"""Starts jobs: plans those that are new, lets those wait that must, gives places to those whose turn it is."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from optiq_core.errors import DataError
from optiq_core.train.records import check_data
from optiq_daemon import planning
from optiq_daemon.errors import log_unexpected
from optiq_daemon.jobs import schedule
from optiq_daemon.jobs.admission import Held, JobAdmission, data_stamp, held_by, lack
from optiq_daemon.jobs.book import JobBook
from optiq_daemon.jobs.records import JobRecord, Wait
from optiq_daemon.jobs.runner import JobRun
from optiq_daemon.names import JobKey
from optiq_daemon.states import JobState
from optiq_daemon.supervisor import EngineSupervisor
from optiq_daemon.tasks import Tasks

FIRST_BACKOFF_S = 1.0
LAST_BACKOFF_S = 30.0
# Between looks at the memory, at the clock and at how long jobs have run.
LOOK_S = 2.0
_IN_LINE = (JobState.QUEUED, JobState.PLANNING, JobState.WAITING)
# Memory that comes and goes by less than this share of what is needed is not worth a word.
_NEWS = 0.01
# A device whose free memory only the planner's process can ask for is asked again after this.
FRESH_S = 30.0


class Dispatcher:
    """Gives open jobs their places.

    Args:
        folder: one folder per job below it.
        places: jobs that may run at once.
        slice_s: seconds that a job keeps its place when others are in line, 0 for as long as it takes.
        make_run: makes a run of a job.
    """

    def __init__(
        self,
        book: JobBook,
        admission: JobAdmission,
        engine: EngineSupervisor,
        *,
        places: int,
        slice_s: float,
        make_run: Callable[[JobRecord], JobRun],
    ) -> None:
        self._book = book
        self._admission = admission
        self._engine = engine
        self._places = places
        self._slice_s = slice_s
        self._make_run = make_run
        self._tasks = Tasks()
        self._draining = False
        self._retry_at: dict[JobKey, float] = {}
        self._planned_at: dict[JobKey, float] = {}
        self._loops: list[asyncio.Task[None]] = []
        self.runs: dict[JobKey, JobRun] = {}

    def start(self) -> None:
        """Begin to work."""
        self._loops = [self._tasks.start(self._plan(), "job planner"), self._tasks.start(self._run(), "job queue")]

    async def drain(self, seconds: float) -> None:
        """Stop: running trainers save a checkpoint, and their jobs are queued to go on at the next start."""
        self._draining = True
        self._book.changed.notify()
        for run in list(self.runs.values()):
            await run.stop("drain")
        until = time.monotonic() + seconds
        while self.runs and (left := until - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._book.changed.ticket().wait(), left)
        await self._tasks.cancel()

    # Planning

    async def _plan(self) -> None:
        while not self._draining:
            tickets = self._book.changed.ticket(), self._engine.changed.ticket()
            record = next((r for r in self._book.open.values() if r.state is JobState.QUEUED and not r.planned), None)
            if record is None:
                await tickets[0].wait()
            elif self._engine.base is None:
                self._wait(record, Wait(reason="engine"))
                await tickets[1].wait()
            else:
                try:
                    await self._plan_one(record)
                except Exception as error:
                    error_id = log_unexpected(record.key.name, error)
                    self._book.set(record, JobState.FAILED, f"an unexpected error, logged by the daemon as {error_id}")

    async def _plan_one(self, record: JobRecord) -> None:
        """Refuse a job that can never run as asked; a job that cannot be planned runs alone."""
        self._book.set(record, JobState.PLANNING, record.state_reason)
        record.data_stamp = data_stamp(record.config.data_path)
        try:
            await asyncio.to_thread(check_data, record.config.data_path)
        except (DataError, OSError) as error:
            if record.state is JobState.PLANNING:
                self._book.set(record, JobState.REFUSED, str(error))
            return
        verdict = await self._admission.plan(record, self._held())
        while verdict is not None and not verdict.fits and record.reduced.limit_bytes:
            # It died of memory: it goes on with less rather than not at all.
            reduced = record.reduced.smaller(record.config)
            if reduced is None or record.state is not JobState.PLANNING:
                break
            record.reduced = reduced
            verdict = await self._admission.plan(record, self._held())
        if record.state is not JobState.PLANNING:
            return
        record.plan, record.planned = verdict, True
        self._planned_at[record.key] = time.monotonic()
        if verdict is not None and not verdict.fits and planning.never_fits(verdict):
            self._book.set(record, JobState.REFUSED, planning.refusal(verdict))
        else:
            self._book.save(record)

    # Places

    async def _run(self) -> None:
        while not self._draining:
            ticket = self._book.changed.ticket()
            await self._look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ticket.wait(), LOOK_S if self._book.open else None)

    async def _look(self) -> None:
        """Give away the free places, and say of every other job what it waits for."""
        now = time.time()
        ready = []
        for record in list(self._book.open.values()):
            if record.key in self.runs or record.state not in _IN_LINE:
                continue
            if reason := schedule.failed_dependency(record, self._book.find):
                self._book.set(record, JobState.CANCELLED, reason)
            elif self._engine.base is None:
                self._wait(record, Wait(reason="engine"))
            elif not record.planned:
                if record.state is JobState.WAITING:
                    # The engine has come up.
                    self._book.set(record, JobState.QUEUED)
            elif wait := schedule.blocked(record, self._book.find, now):
                self._wait(record, wait)
            elif self._retry_at.get(record.key, 0.0) <= time.monotonic():
                ready.append(record)
        for run in self.runs.values():
            run.charge()
        running = [run.record.tenant for run in self.runs.values()]
        await self._fill(schedule.in_turn(ready, self._book.turns, running.count))

    async def _fill(self, line: list[JobRecord]) -> None:
        ahead = 0
        kept = False
        for record in line:
            if len(self.runs) >= self._places or kept:
                if ahead == 0:
                    await self._ask_for_room(record)
                ahead += 1
                self._wait(record, Wait(reason="turn", ahead=ahead - 1 + len(self.runs)))
            elif not await self._admitted(record):
                ahead += 1
                # Those behind may go first, unless it would fit as soon as the running ones are through.
                kept = bool(self.runs)

    async def _admitted(self, record: JobRecord) -> bool:
        """Start a job if it fits beside what runs; otherwise say what for it waits."""
        if self._stale(record):
            record.planned = False
            self._book.set(record, JobState.QUEUED, record.state_reason)
            return False
        held = self._held()
        verdict = await self._admission.now(record, held)
        if self._draining or record.state not in _IN_LINE:
            return False
        if verdict is None and self.runs:
            self._wait(record, Wait(reason="turn", ahead=len(self.runs)))
            return False
        if verdict is not None:
            record.plan = verdict
            if not verdict.fits:
                self._wait(record, lack(verdict))
                return False
        run = self.runs[record.key] = self._make_run(record)
        self._tasks.start(self._follow(record, run), record.key.name)
        return True

    async def _follow(self, record: JobRecord, run: JobRun) -> None:
        try:
            await run.run()
        finally:
            del self.runs[record.key]
            self._retry_at.pop(record.key, None)
            if record.stalled and not record.state.ended:
                pause = min(FIRST_BACKOFF_S * 2 ** (record.stalled - 1), LAST_BACKOFF_S)
                self._retry_at[record.key] = time.monotonic() + pause
            self._book.changed.notify()

    async def _ask_for_room(self, first: JobRecord) -> None:
        """Have a running job step aside that has had its slice, for one that has a better claim."""
        running = [(run.record, run.seconds) for run in self.runs.values()]
        record = schedule.to_yield(running, first, self._book.turns, self._slice_s)
        if record is not None:
            await self.runs[record.key].stop("yield")

    def _stale(self, record: JobRecord) -> bool:
        """Whether the plan is of other data, or of a device whose memory has to be asked for again."""
        if record.data_stamp != data_stamp(record.config.data_path):
            return True
        on_cpu = record.plan is None or record.plan.ceiling.backend == "cpu"
        return not on_cpu and time.monotonic() - self._planned_at.get(record.key, 0.0) > FRESH_S

    def _held(self) -> list[Held]:
        return [held_by(run.record, run.pid) for run in self.runs.values()]

    def _wait(self, record: JobRecord, wait: Wait) -> None:
        told = record.wait
        if told is not None and told.reason == wait.reason == "memory":
            moved = abs(told.free_bytes - wait.free_bytes)
            if told.needed_bytes == wait.needed_bytes and moved < _NEWS * wait.needed_bytes:
                return
        self._book.set(record, JobState.WAITING, schedule.say(wait), wait)
