"""What is known of a training job."""

from __future__ import annotations

import time
from typing import Literal

import msgspec

from optiq_core.planner.plan import Verdict
from optiq_core.train.config import TrainConfig
from optiq_core.train.events import Progress, StepPeak
from optiq_daemon.names import JobKey
from optiq_daemon.states import JobState

WaitFor = Literal["turn", "memory", "jobs", "time", "engine"]
PRIORITIES = (-100, 100)
MAX_AFTER = 32
LOSS_CHUNK = 256


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


class Publication(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of the adapter.

    Attributes:
        route: id of a route that gives it `route_weight` of 100 requests; empty for none.
        gate: it is published only if its loss is below the present version's.
        gate_path: JSONL file to score on; empty for the data's `valid.jsonl`.
    """

    route: str = ""
    route_weight: int = 5
    gate: bool = False
    gate_path: str = ""


class GateResult(msgspec.Struct, frozen=True, kw_only=True):
    """How the gate decided: mean losses in nats per token over the same `tokens`; `present` was to be beaten."""

    passed: bool
    loss: float
    present_loss: float
    present: str
    tokens: int
    data_path: str


PLAIN = Publication()


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


class Reduced(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a job holds in memory at a time, where that is less than its configuration says; the result is the same.

    Attributes:
        micro_batch_size, loss_chunk: 0 for as configured.
        grad_checkpoint: on, whatever the configuration says.
        limit_bytes: what it may be planned to take, below what it died of; 0 for no limit of its own.
    """

    micro_batch_size: int = 0
    loss_chunk: int = 0
    grad_checkpoint: bool = False
    limit_bytes: int = 0

    def apply(self, config: TrainConfig) -> TrainConfig:
        """The configuration to run."""
        return msgspec.structs.replace(
            config,
            micro_batch_size=self.micro_batch_size or config.micro_batch_size,
            loss_chunk=self.loss_chunk or config.loss_chunk,
            grad_checkpoint=self.grad_checkpoint or config.grad_checkpoint,
        )

    def smaller(self, config: TrainConfig) -> Reduced | None:
        """The next smaller one, None if there is none: fewer rows first, then what costs time."""
        now = self.apply(config)
        if now.rows_at_a_time > 1:
            return msgspec.structs.replace(self, micro_batch_size=now.rows_at_a_time // 2)
        if not now.loss_chunk:
            return msgspec.structs.replace(self, loss_chunk=LOSS_CHUNK)
        if not now.grad_checkpoint:
            return msgspec.structs.replace(self, grad_checkpoint=True)
        return None

    def words(self, config: TrainConfig) -> str:
        """What differs from the configuration, empty if nothing does."""
        now = self.apply(config)
        names = ("micro_batch_size", "loss_chunk", "grad_checkpoint")
        changed = [name for name in names if getattr(now, name) != getattr(config, name)]
        return ", ".join(f"{name} {str(getattr(now, name)).lower()}" for name in changed)


NOTHING_LESS = Reduced()


class JobRecord(msgspec.Struct, kw_only=True):
    """One job. Times are in seconds since the epoch, 0 until they come.

    `config` never changes after creation. `checkpoint_step` is the newest step that training can go on from, and
    `stalled` counts the trainer processes that died in a row without a newer one. `planned` says that the plan is of
    the data with the stamp `data_stamp`; a job that could not be planned has none and runs alone. `reduced` is what
    memory has taught of this job, `step_peak` the peak of its largest step.
    """

    id: str
    tenant: str
    adapter_id: str
    request_id: str
    config: TrainConfig
    schedule: Schedule = AT_ONCE
    publication: Publication = PLAIN
    gate: GateResult | None = None
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
    reduced: Reduced = NOTHING_LESS
    step_peak: StepPeak | None = None
    version: int = 0

    @property
    def key(self) -> JobKey:
        """Its name's parts."""
        return JobKey(self.tenant, self.id)

    @property
    def running_config(self) -> TrainConfig:
        """The configuration as the next trainer runs it."""
        return self.reduced.apply(self.config)

    @property
    def etag(self) -> str:
        """Changes with every change of the record."""
        return f"{self.id[-8:]}-{self.version}"

    @property
    def bound_bytes(self) -> int:
        """What its trainer is not expected to exceed, 0 if it could not be planned."""
        return self.plan.bound_bytes if self.plan is not None else 0
