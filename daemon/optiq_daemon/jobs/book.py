"""The jobs that there are: open ones in memory, all of them in the store. Every change of state goes through here."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable

from optiq_core.train.events import Progress
from optiq_daemon.errors import NotFoundError
from optiq_daemon.events import EventLog
from optiq_daemon.fairness import VirtualCounters
from optiq_daemon.jobs.records import JobRecord, Wait
from optiq_daemon.jobs.table import JobTable
from optiq_daemon.names import JobKey
from optiq_daemon.signals import Changed
from optiq_daemon.states import JobState
from optiq_daemon.store import Store

OPEN_STATES = (JobState.QUEUED, JobState.PLANNING, JobState.WAITING, JobState.RUNNING, JobState.PAUSED)


class JobBook:
    """Records of all tenants.

    Args:
        weight: a tenant's share of training time, relative to the others.

    Attributes:
        open: jobs that have not ended, oldest first; everyone changes these same objects.
        turns: seconds of training, shared like tokens are: the tenant with the least, by its weight, is next.
        changed: told of every change.
    """

    def __init__(self, store: Store, events: EventLog, weight: Callable[[str], float]) -> None:
        self._store = store
        self._table = JobTable(store)
        self.events = events
        self.open: dict[JobKey, JobRecord] = {}
        self.turns = VirtualCounters(weight)
        self.changed = Changed()

    def restore(self) -> list[JobRecord]:
        """Take up what had not ended, oldest first."""
        records = self._table.in_states(*OPEN_STATES)
        for record in records:
            self.open[record.key] = record
            self.turns.enter(record.tenant)
        return records

    def add(self, record: JobRecord) -> None:
        """Queue a new job."""
        with self._store.transaction():
            self._table.insert(record)
            fields = {"adapter_id": record.adapter_id}
            self.events.append("job.queued", record.key.name, f"trains {record.adapter_id}", fields)
        self.open[record.key] = record
        self.turns.enter(record.tenant)
        self.changed.notify()

    def find(self, key: JobKey) -> JobRecord | None:
        """One job, if there is one."""
        return self.open.get(key) or self._table.find(key)

    def get(self, key: JobKey) -> JobRecord:
        """One job.

        Raises:
            NotFoundError: there is none.
        """
        record = self.find(key)
        if record is None:
            raise NotFoundError("job", key.name, f"there is no job {key.job!r} in tenant {key.tenant!r}")
        return record

    def by_request(self, tenant: str, request_id: str) -> JobRecord | None:
        """The job that a request made."""
        made = self._table.by_request(tenant, request_id)
        return self.open.get(made.key, made) if made is not None else None

    def page(self, tenant: str, size: int, before: tuple[float, str] | None) -> list[JobRecord]:
        """Jobs of a tenant, newest first."""
        return [self.open.get(record.key, record) for record in self._table.page(tenant, size, before)]

    def of(self, tenant: str) -> list[JobRecord]:
        """A tenant's jobs that have not ended, oldest first."""
        return [record for record in self.open.values() if record.tenant == tenant]

    def set(self, record: JobRecord, state: JobState, reason: str = "", wait: Wait | None = None) -> None:
        """Move a job to a state, with a sentence that says why where one is needed."""
        moved = state is not record.state
        if (state, reason, wait) == (record.state, record.state_reason, record.wait):
            return
        record.state, record.state_reason, record.wait = state, reason, wait
        if state.ended:
            record.end_time = time.time()
            if self.open.pop(record.key, None) is not None:
                self.turns.leave(record.tenant)
        with self._store.transaction():
            self._table.save(record)
            if moved:
                fields = {"adapter_digest": record.adapter_digest} if record.adapter_digest else {}
                self.events.append(f"job.{state.name.lower()}", record.key.name, reason, fields)
        self.changed.notify()

    def save(self, record: JobRecord) -> None:
        """Write fields that are no state."""
        self._table.save(record)
        self.changed.notify()

    def report(self, record: JobRecord, progress: Progress) -> None:
        """Note a report of a running job."""
        record.progress = progress
        with self._store.transaction():
            self._table.add_progress(record.id, progress)
            self._table.save(record)
        self.changed.notify()

    def rewind(self, record: JobRecord, step: int) -> None:
        """Training goes on after `step`: later reports come again."""
        self._table.rewind(record.id, step)

    def delete(self, record: JobRecord) -> None:
        """Forget a job that has ended."""
        with self._store.transaction():
            self._table.delete(record.id)
            self.events.append("job.deleted", record.key.name, "removed with its checkpoints")

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
