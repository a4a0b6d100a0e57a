"""When a training job runs, and what it waits for: frozen dataclasses, no protobuf in sight."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from optiq_client.states import WaitReason


@dataclass(frozen=True, slots=True)
class JobSchedule:
    """When a job may run.

    ``priority`` (-100 to 100, higher first) is among the tenant's own jobs; ``after`` are jobs, by id or full name,
    that must have succeeded; ``not_before`` is a timezone-aware time, None for as soon as possible.
    """

    priority: int = 0
    after: tuple[str, ...] = ()
    not_before: datetime | None = None


AT_ONCE = JobSchedule()


@dataclass(frozen=True, slots=True)
class JobPublication:
    """What becomes of the adapter of a job that succeeds.

    With ``route``, that route gives the new version ``route_weight`` of 100 requests (0 means 5), and what it serves
    now keeps the rest. With ``gate``, the adapter is published only if its loss on ``gate_path`` (by default the data's
    ``valid.jsonl``) is below that of the version served now, or of the base; otherwise it is kept, unpublished.
    """

    route: str = ""
    route_weight: int = 0
    gate: bool = False
    gate_path: str = ""


PLAIN = JobPublication()


@dataclass(frozen=True, slots=True)
class JobGateResult:
    """How the gate decided: nats per token over the same ``tokens``; ``present`` is what was to be beaten."""

    passed: bool
    loss: float
    present_loss: float
    present: str
    tokens: int
    data_path: str


@dataclass(frozen=True, slots=True)
class JobWait:
    """What a WAITING job waits for; fields that do not belong to the reason are 0, empty or None.

    ``ahead`` counts the jobs that come first, running ones included; resources are buffers that live at once.
    """

    reason: WaitReason
    needed_bytes: int
    free_bytes: int
    needed_resources: int
    free_resources: int
    ahead: int
    jobs: tuple[str, ...]
    until: datetime | None
