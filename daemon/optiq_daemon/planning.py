"""Asks the planner process what a job will take."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import msgspec
import psutil

from optiq_core.planner.plan import Verdict
from optiq_daemon.children import Child

log = logging.getLogger(__name__)

MODULE = "optiq_daemon.planner_process"
LOG_NAME = "planner.log"
PATIENCE_S = 180.0


async def ask(job: Path, *, limit_bytes: int, resident_bytes: int, calibration: Path) -> Verdict | None:
    """The verdict on a ``job.json``; None if it could not be planned, which the log explains.

    Args:
        job: the file; the planner's log lies beside it.
        limit_bytes: the user's own limit, 0 for none.
        resident_bytes: of other processes, what the device's own figure of free memory does not count.
        calibration: what finished jobs have taught.
    """
    limits = ["--limit-bytes", str(limit_bytes), "--resident-bytes", str(resident_bytes)]
    arguments = ["--job", str(job), *limits, "--calibration", str(calibration)]
    child = await Child.spawn([MODULE, *arguments], job.parent / LOG_NAME, read_stdout=True)
    stdout = child.process.stdout
    assert stdout is not None
    try:
        answer = await asyncio.wait_for(stdout.read(), PATIENCE_S)
        await child.wait()
        return msgspec.json.decode(answer, type=Verdict)
    except (TimeoutError, msgspec.DecodeError):
        log.warning("job=%s could not be planned: %s", job.parent.name, child.tail())
        return None
    finally:
        if child.returncode is None:
            child.kill()
            await asyncio.shield(child.wait())


def never_fits(verdict: Verdict) -> bool:
    """Whether waiting for memory to become free is of no use."""
    ceiling = verdict.ceiling
    if ceiling.user_bytes and verdict.bound_bytes > ceiling.user_bytes:
        return True
    if ceiling.resources and verdict.step.live_buffers > ceiling.resources:
        return True
    most = psutil.virtual_memory().total if ceiling.backend == "cpu" else ceiling.limit_bytes
    return verdict.bound_bytes > most - ceiling.reserve_bytes


def refusal(verdict: Verdict) -> str:
    """Why, and what would make it fit."""
    advice = "; or ".join(each.text for each in verdict.advice[:3])
    said = f"does not fit: {'; '.join(verdict.reasons)}"
    return f"{said}. What would: {advice}" if advice else said
