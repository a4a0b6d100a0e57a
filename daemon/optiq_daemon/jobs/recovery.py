"""Jobs whose trainer died, and what a new daemon makes of the jobs of the one before."""

from __future__ import annotations

from optiq_daemon.jobs.book import JobBook
from optiq_daemon.jobs.records import JobRecord
from optiq_daemon.states import JobState

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
    if record.stalled >= attempts:
        times = f"{record.stalled} times in a row without a new checkpoint"
        book.set(record, JobState.FAILED, f"{reason} ({times})")
        return
    book.events.append("job.interrupted", record.key.name, reason, {"attempt": str(record.attempts)})
    book.set(record, JobState.QUEUED, f"starts again from step {record.checkpoint_step}: {reason}")
