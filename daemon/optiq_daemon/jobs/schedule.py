"""Who runs next: dependencies, scheduled starts, turns of tenants, priorities within one. Pure functions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from optiq_daemon.fairness import VirtualCounters
from optiq_daemon.jobs.records import JobRecord, Wait
from optiq_daemon.names import JobKey
from optiq_daemon.states import JobState

Find = Callable[[JobKey], JobRecord | None]


def failed_dependency(record: JobRecord, find: Find) -> str:
    """Why a job can never run, empty if it still can: a job that it comes after did not succeed."""
    for job in record.schedule.after:
        other = find(JobKey(record.tenant, job))
        if other is None:
            return f"{job}, which it comes after, was deleted"
        if other.state.ended and other.state is not JobState.SUCCEEDED:
            return f"{job}, which it comes after, ended {other.state.name}"
    return ""


def blocked(record: JobRecord, find: Find, now: float) -> Wait | None:
    """What a job waits for before it is its turn at all."""
    unfinished = []
    for job in record.schedule.after:
        other = find(JobKey(record.tenant, job))
        if other is not None and not other.state.ended:
            unfinished.append(job)
    if unfinished:
        return Wait(reason="jobs", jobs=tuple(unfinished))
    if record.schedule.not_before > now:
        return Wait(reason="time", until=record.schedule.not_before)
    return None


def in_turn(
    ready: Iterable[JobRecord], turns: VirtualCounters, running: Callable[[str], int] = lambda _: 0
) -> list[JobRecord]:
    """Jobs in the order in which they get a place.

    Tenants take turns, the one with the least training time by its weight first, then the one with the fewest jobs that
    run. Within a tenant the highest priority comes first, then the oldest.

    Args:
        ready: jobs that wait for nothing but a place.
        running: how many jobs of a tenant run.
    """
    lines: dict[str, list[JobRecord]] = {}
    for record in sorted(ready, key=lambda r: (-r.schedule.priority, r.create_time)):
        lines.setdefault(record.tenant, []).append(record)
    tenants = sorted(lines, key=lambda tenant: (turns.served(tenant), running(tenant)))
    longest = max((len(line) for line in lines.values()), default=0)
    return [lines[tenant][at] for at in range(longest) for tenant in tenants if at < len(lines[tenant])]


def to_yield(
    running: Iterable[tuple[JobRecord, float]], first: JobRecord, turns: VirtualCounters, slice_s: float
) -> JobRecord | None:
    """The running job that makes room for `first`, None if none has to.

    Args:
        running: jobs with the seconds that each has run since its last start.
        first: of those that are ready.
        slice_s: seconds that a job keeps its place when others are in line, 0 for as long as it takes.
    """
    if not slice_s:
        return None
    for record, seconds in running:
        if seconds < slice_s:
            continue
        if record.tenant == first.tenant:
            if first.schedule.priority > record.schedule.priority:
                return record
        elif turns.served(first.tenant) < turns.served(record.tenant):
            return record
    return None


def say(wait: Wait) -> str:
    """One sentence for a person."""
    if wait.reason == "turn":
        return f"for its turn: {wait.ahead} {'job comes' if wait.ahead == 1 else 'jobs come'} first"
    if wait.reason == "memory":
        parts = [f"needs {wait.needed_bytes / 1e9:.2f} GB and there are {wait.free_bytes / 1e9:.2f} GB"]
        if wait.free_resources:
            parts.append(f"needs {wait.needed_resources:,} resources and there are {wait.free_resources:,}")
        return f"for memory: {'; '.join(parts)}"
    if wait.reason == "jobs":
        return f"for {', '.join(wait.jobs)} to succeed"
    if wait.reason == "time":
        return f"until {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime(wait.until))}"
    return "the engine is still loading the base"
