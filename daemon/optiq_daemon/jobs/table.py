"""Training jobs as rows: their records and their progress."""

from __future__ import annotations

import msgspec

from optiq_core.train.events import Progress
from optiq_daemon.jobs.records import JobRecord
from optiq_daemon.names import JobKey
from optiq_daemon.states import JobState
from optiq_daemon.store import Store


class JobTable:
    """The rows of `jobs` and `job_progress`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def insert(self, record: JobRecord) -> None:
        """Add a job."""
        self._store.execute(
            "INSERT INTO jobs (id, tenant, request_id, state, create_time, document) VALUES (?, ?, ?, ?, ?, ?)",
            (
                record.id,
                record.tenant,
                record.request_id,
                int(record.state),
                record.create_time,
                msgspec.json.encode(record).decode(),
            ),
        )

    def save(self, record: JobRecord) -> None:
        """Write a changed record."""
        record.version += 1
        self._store.execute(
            "UPDATE jobs SET state = ?, document = ? WHERE id = ?",
            (int(record.state), msgspec.json.encode(record).decode(), record.id),
        )

    def delete(self, job: str) -> None:
        """Remove a job and its progress."""
        self._store.execute("DELETE FROM jobs WHERE id = ?", (job,))

    def find(self, key: JobKey) -> JobRecord | None:
        """One job."""
        return self._one("SELECT document FROM jobs WHERE tenant = ? AND id = ?", key)

    def by_request(self, tenant: str, request_id: str) -> JobRecord | None:
        """The job that a request made."""
        return self._one("SELECT document FROM jobs WHERE tenant = ? AND request_id = ?", (tenant, request_id))

    def in_states(self, *states: JobState) -> list[JobRecord]:
        """Jobs of all tenants in these states, oldest first."""
        marks = ", ".join("?" * len(states))
        rows = self._store.rows(
            f"SELECT document FROM jobs WHERE state IN ({marks}) ORDER BY create_time, id", map(int, states)
        )
        return [_decode(row["document"]) for row in rows]

    def page(self, tenant: str, size: int, before: tuple[float, str] | None) -> list[JobRecord]:
        """Jobs of a tenant, newest first, that come after `before` = (create time, id) in that order."""
        time_, job = before or (float("inf"), "")
        rows = self._store.rows(
            "SELECT document FROM jobs WHERE tenant = ? AND (create_time, id) < (?, ?)"
            " ORDER BY create_time DESC, id DESC LIMIT ?",
            (tenant, time_, job, size),
        )
        return [_decode(row["document"]) for row in rows]

    def add_progress(self, job: str, progress: Progress) -> None:
        """Append a report."""
        self._store.execute(
            "INSERT INTO job_progress (job, step, document) VALUES (?, ?, ?)",
            (job, progress.step, msgspec.json.encode(progress).decode()),
        )

    def rewind(self, job: str, step: int) -> None:
        """Forget reports of steps that are taken again."""
        self._store.execute("DELETE FROM job_progress WHERE job = ? AND step > ?", (job, step))

    def progress_after(self, job: str, sequence: int) -> list[tuple[int, Progress]]:
        """Reports later than `sequence`, with theirs."""
        rows = self._store.rows(
            "SELECT sequence, document FROM job_progress WHERE job = ? AND sequence > ? ORDER BY sequence LIMIT 500",
            (job, sequence),
        )
        return [(row["sequence"], msgspec.json.decode(row["document"], type=Progress)) for row in rows]

    def _one(self, statement: str, parameters: tuple[str, ...]) -> JobRecord | None:
        row = self._store.row(statement, parameters)
        return _decode(row["document"]) if row else None


def _decode(document: str) -> JobRecord:
    return msgspec.json.decode(document, type=JobRecord)
