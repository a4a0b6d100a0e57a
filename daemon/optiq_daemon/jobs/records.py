"""What is known of a training job."""

from __future__ import annotations

import time
from typing import Literal

import msgspec

from optiq_core.planner.plan import Verdict
from optiq_core.train.config import TrainConfig
from optiq_core.train.events import Progress
from optiq_daemon.names import JobKey
from optiq_daemon.states import JobState

WaitFor = Literal["turn", "memory", "jobs", "time", "engine"]
PRIORITIES = (-100, 100)
MAX_AFTER = 32


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """When a job may run.

    Attributes:
        priority: among the tenant's own jobs, higher first.
        after: ids of the tenant's jobs that must have succeeded.
        not_before: seconds since the epoch, 0 for at once.
    """

    priority: int = 0
    after: tuple[str, ...] = ()
    not_before: float = 0.0


AT_ONCE = Schedule()


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """What a WAITING job waits for; fields that do not matter are 0 or empty.

    Attributes:
        needed_bytes, free_bytes: of memory.
        needed_resources, free_resources: buffers that live at once.
        ahead: jobs that come first.
        jobs: ids of jobs that have not ended.
        until: seconds since the epoch.
    """

    reason: WaitFor
    needed_bytes: int = 0
    free_bytes: int = 0
    needed_resources: int = 0
    free_resources: int = 0
    ahead: int = 0
    jobs: tuple[str, ...] = ()
    until: float = 0.0


class JobRecord(msgspec.Struct, kw_only=True):
    """One job. Times are in seconds since the epoch, 0 until they come.

    `config` never changes after creation. `checkpoint_step` is the newest step that training can go on from, and
    `stalled` counts the trainer processes that died in a row without a newer one. `planned` says that the plan is of
    the data with the stamp `data_stamp`; a job that could not be planned has none and runs alone.
    """

    id: str
    tenant: str
    adapter_id: str
    request_id: str
    config: TrainConfig
    schedule: Schedule = AT_ONCE
    state: JobState = JobState.QUEUED
    state_reason: str = ""
    wait: Wait | None = None
    progress: Progress | None = None
    create_time: float = msgspec.field(default_factory=time.time)
    start_time: float = 0.0
    end_time: float = 0.0
    adapter_digest: str = ""
    attempts: int = 0
    stalled: int = 0
    checkpoint_step: int = 0
    cancel_requested: bool = False
    pause_requested: bool = False
    planned: bool = False
    data_stamp: str = ""
    plan: Verdict | None = None
    version: int = 0

    @property
    def key(self) -> JobKey:
        """Its name's parts."""
        return JobKey(self.tenant, self.id)

    @property
    def etag(self) -> str:
        """Changes with every change of the record."""
        return f"{self.id[-8:]}-{self.version}"

    @property
    def bound_bytes(self) -> int:
        """What its trainer is not expected to exceed, 0 if it could not be planned."""
        return self.plan.bound_bytes if self.plan is not None else 0
