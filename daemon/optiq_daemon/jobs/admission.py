"""Whether a job fits: planned once in a process of its own, held against what is free whenever it could start."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import psutil

from optiq_core.errors import OptiqError
from optiq_core.planner.ceilings import Ceiling, ceiling_of
from optiq_core.planner.plan import Verdict, judge
from optiq_core.train.config import TrainConfig
from optiq_core.train.records import TRAIN_FILE, VALID_FILE
from optiq_daemon import planning
from optiq_daemon.errors import RefusedError
from optiq_daemon.jobs.records import JobRecord, Wait
from optiq_daemon.supervisor import EngineSupervisor

JOB_FILE = "job.json"


class Held(NamedTuple):
    """What a running trainer will take, and what its process has by now."""

    bound_bytes: int
    resident_bytes: int


class JobAdmission:
    """Plans jobs and decides about them.

    Args:
        folder: one folder per job below it.
        load_in: how the base is quantized at load, as the engine has it; empty for as it is.
        memory_bytes: what all running jobs together may take; 0 for what is free.
        calibration: what finished jobs have taught.
    """

    def __init__(
        self, engine: EngineSupervisor, folder: Path, *, load_in: str, memory_bytes: int, calibration: Path
    ) -> None:
        self._engine = engine
        self._folder = folder
        self._load_in = load_in
        self.memory_bytes = memory_bytes
        self.calibration = calibration

    async def dry_run(self, config: TrainConfig) -> Verdict:
        """What a job would take; queues nothing.

        Raises:
            RefusedError: the engine has not said what base there is, or the job cannot be planned.
        """
        if self._engine.base is None:
            raise RefusedError("the engine is still loading the base", reason="BASE_NOT_LOADED")
        with tempfile.TemporaryDirectory(prefix="optiq-plan-") as folder:
            job = Path(folder) / JOB_FILE
            await asyncio.to_thread(_write, job, self._content(config, "plan", "plan"))
            verdict = await self._ask(job, ())
        if verdict is None:
            raise RefusedError("the job cannot be planned; the daemon's log says why", reason="NOT_PLANNED")
        return verdict

    async def plan(self, record: JobRecord, running: Sequence[Held]) -> Verdict | None:
        """The verdict on a job as its next trainer would run it; None if it could not be planned."""
        return await self._ask(await self.write_job(record), running, record.reduced.limit_bytes)

    async def write_job(self, record: JobRecord) -> Path:
        """Write what the trainer and the planner read; returns the file."""
        path = self._folder / record.id / JOB_FILE
        limit = record.plan.ceiling.free_bytes if record.plan is not None else self.memory_bytes
        content = self._content(record.running_config, record.adapter_id, record.key.name, limit)
        await asyncio.to_thread(_write, path, content)
        return path

    async def now(self, record: JobRecord, running: Sequence[Held]) -> Verdict | None:
        """A job's plan held against what is free at this moment; None if it has no plan."""
        if record.plan is None:
            return None
        ceiling = await self._ceiling(record.plan.ceiling, running)
        if own := record.reduced.limit_bytes:
            ceiling = msgspec.structs.replace(ceiling, user_bytes=min(ceiling.user_bytes or own, own))
        return judge(record.plan.step, ceiling, record.plan.calibration)

    async def _ceiling(self, old: Ceiling, running: Sequence[Held]) -> Ceiling:
        user = self._user_bytes(running)
        if old.backend == "cpu":
            return ceiling_of("cpu", resident_bytes=_still_to_come(running), user_bytes=user)
        resident = await self._resident_bytes(old.backend, running)
        return msgspec.structs.replace(old, resident_bytes=resident, user_bytes=user)

    async def _ask(self, job: Path, running: Sequence[Held], own_limit: int = 0) -> Verdict | None:
        limit = min(filter(None, (self.memory_bytes, own_limit)), default=0)
        base = self._engine.base
        resident = await self._resident_bytes(base.device_kind if base is not None else "cpu", running)
        return await planning.ask(job, limit_bytes=limit, resident_bytes=resident, calibration=self.calibration)

    async def _resident_bytes(self, backend: str, running: Sequence[Held]) -> int:
        """What the device's own figure of free memory does not count yet, or does not count at all."""
        if backend == "metal":
            engine = 0
            with contextlib.suppress(OptiqError):
                engine = (await self._engine.client.status()).active_memory_bytes
            return engine + sum(held.bound_bytes for held in running)
        return _still_to_come(running)

    def _user_bytes(self, running: Sequence[Held]) -> int:
        if not self.memory_bytes:
            return 0
        # 0 would be no limit.
        return max(1, self.memory_bytes - sum(held.bound_bytes for held in running))

    def _content(self, config: TrainConfig, adapter_id: str, name: str, limit_bytes: int = 0) -> bytes:
        base = self._engine.base
        assert base is not None
        job = {
            "base_path": base.path,
            "load_in": self._load_in or None,
            "config": msgspec.to_builtins(config),
            "adapter_id": adapter_id,
            "job": name,
            "limit_bytes": limit_bytes,
        }
        return msgspec.json.encode(job)


def lack(verdict: Verdict) -> Wait:
    """What a job that does not fit now waits for."""
    ceiling = verdict.ceiling
    short = ceiling.resources and verdict.step.live_buffers > ceiling.resources
    return Wait(
        reason="memory",
        needed_bytes=verdict.bound_bytes,
        free_bytes=ceiling.free_bytes,
        needed_resources=verdict.step.live_buffers if short else 0,
        free_resources=ceiling.resources if short else 0,
    )


def held_by(record: JobRecord, pid: int | None) -> Held:
    """What a running job holds."""
    resident = 0
    if pid is not None:
        with contextlib.suppress(psutil.Error):
            resident = psutil.Process(pid).memory_info().rss
    return Held(record.bound_bytes, resident)


def data_stamp(data: str) -> str:
    """Changes when the training file or files do; empty if there are none."""
    path, found = Path(data), []
    for file in (path,) if path.is_file() else (path / TRAIN_FILE, path / VALID_FILE):
        with contextlib.suppress(OSError):
            seen = file.stat()
            found.append(f"{file.name} {seen.st_size} {seen.st_mtime_ns}")
    return ", ".join(found)


def _still_to_come(running: Sequence[Held]) -> int:
    return sum(max(0, held.bound_bytes - held.resident_bytes) for held in running)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_suffix(".tmp")
    staging.write_bytes(content)
    staging.replace(path)
