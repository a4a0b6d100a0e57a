"""Jobs whose trainer died, and what a new daemon makes of the jobs of the one before."""

from __future__ import annotations

import msgspec

from optiq_daemon.jobs.book import JobBook
from optiq_daemon.jobs.records import JobRecord, Reduced
from optiq_daemon.states import JobState

# Of the memory at which a trainer died, what the next one may be planned to take.
BELOW_DEATH = 0.9
AGAIN = "stopped with the daemon; goes on when it is started again"


def recover(book: JobBook, attempts: int) -> None:
    """Take up what was queued or cut off.

    Args:
        attempts: trainer processes that may die in a row without a new checkpoint.
    """
    for record in book.restore():
        if record.cancel_requested:
            book.set(record, JobState.CANCELLED, "cancelled as asked")
        elif record.pause_requested:
            book.set(record, JobState.PAUSED, "paused as asked")
        elif record.state is JobState.RUNNING:
            died(book, record, "the daemon ended while it ran", attempts)
        elif record.state is not JobState.QUEUED:
            book.set(record, JobState.QUEUED)
        # What was free then says nothing about now.
        record.planned = False


def died(book: JobBook, record: JobRecord, reason: str, attempts: int) -> None:
    """Queue a job again whose trainer ended without a last word, or give it up."""
    record.stalled += 1
    again(book, record, reason, attempts)


def killed(book: JobBook, record: JobRecord, reason: str, attempts: int) -> None:
    """The same where it may have been the system, for want of memory: the next trainer holds less."""
    if (reduced := record.reduced.smaller(record.config)) is not None:
        reduce(book, record, reduced, reason)
    died(book, record, reason, attempts)


def out_of_memory(book: JobBook, record: JobRecord, reason: str, at_bytes: int, attempts: int) -> None:
    """A trainer ran out of memory: the next one holds less, and is planned to stay below what this one died of.

    That does not count as an attempt, since there are not many smaller ones.
    """
    reduced = record.reduced.smaller(record.config)
    if reduced is None:
        died(book, record, reason, attempts)
        return
    limit = int(at_bytes * BELOW_DEATH) or reduced.limit_bytes
    if reduced.limit_bytes:
        limit = min(limit, reduced.limit_bytes)
    reduce(book, record, msgspec.structs.replace(reduced, limit_bytes=limit), reason)
    again(book, record, reason, attempts)


def reduce(book: JobBook, record: JobRecord, reduced: Reduced, reason: str) -> None:
    """Let the next trainer hold less."""
    record.reduced, record.planned = reduced, False
    words = reduced.words(record.config)
    book.events.append("job.reduced", record.key.name, f"{reason}; goes on with {words}", {"settings": words})


def again(book: JobBook, record: JobRecord, reason: str, attempts: int) -> None:
    """Queue a job again, or give it up."""
    if record.stalled >= attempts:
        times = f"{record.stalled} times in a row without a new checkpoint"
        book.set(record, JobState.FAILED, f"{reason} ({times})")
        return
    book.events.append("job.interrupted", record.key.name, reason, {"attempt": str(record.attempts)})
    smaller = record.reduced.words(record.config)
    how = f" with {smaller}" if smaller else ""
    book.set(record, JobState.QUEUED, f"starts again from step {record.checkpoint_step}{how}: {reason}")
