"""What the dashboard knows, as immutable values: screens draw these and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from types import MappingProxyType
from typing import TypeVar

from optiq_client import (
    Adapter,
    AdapterVersion,
    Event,
    Job,
    Progress,
    Route,
    RouteDecision,
    ShadowAnswer,
    Status,
    Tenant,
    TrainingConfig,
    TrainingPlan,
)

K = TypeVar("K")
V = TypeVar("V")

SAMPLES = 120


class Part(Enum):
    """Parts of a view that change on their own."""

    LINK = "link"
    STATUS = "status"
    ADAPTERS = "adapters"
    JOBS = "jobs"
    EVENTS = "events"
    ROUTING = "routing"
    DETAIL = "detail"
    PLAN = "plan"
    PLAY = "play"
    LOG = "log"


ALL_PARTS = frozenset(Part)


class Link(Enum):
    """State of the connection to the daemon."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    LOST = "lost"
    # Somebody answers, and does not want us.
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class LinkState:
    """The connection.

    Attributes:
        link: its state.
        address: what is dialled.
        detail: what went wrong, one line; empty if nothing.
        retry_in: seconds until the next try, for LOST and REFUSED.
    """

    link: Link = Link.CONNECTING
    address: str = ""
    detail: str = ""
    retry_in: float = 0.0


@dataclass(frozen=True, slots=True)
class Trends:
    """The latest samples of the status, one a second, oldest first."""

    tokens_per_second: tuple[float, ...] = ()
    queued: tuple[float, ...] = ()
    rows: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class AdapterDetail:
    """What is read when an adapter is looked at: its versions, newest first, and the rank of each adapted module."""

    name: str
    digest: str
    versions: tuple[AdapterVersion, ...] = ()
    ranks: Mapping[str, int] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, slots=True)
class RouteDetail:
    """What is read when a route is looked at, newest first."""

    name: str
    decisions: tuple[RouteDecision, ...] = ()
    shadows: tuple[ShadowAnswer, ...] = ()


@dataclass(frozen=True, slots=True)
class Routing:
    """Routes and tenants; ``error`` says why some of it is not there."""

    routes: tuple[Route, ...] = ()
    tenants: tuple[Tenant, ...] = ()
    detail: RouteDetail | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class JobLog:
    """The end of what the trainer of a job wrote, oldest first."""

    name: str = ""
    lines: tuple[str, ...] = ()


class PlanStage(Enum):
    """Where the plan of a submit form is."""

    NONE = "none"
    PLANNING = "planning"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class PlanState:
    """The plan of the job that is being written; ``plan`` stays while the next one is made."""

    stage: PlanStage = PlanStage.NONE
    config: TrainingConfig | None = None
    plan: TrainingPlan | None = None
    error: str = ""


class LanePhase(Enum):
    """Where an answer is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Lane:
    """One answer of the playground.

    Attributes:
        title: what was asked for: an adapter, ``base``, or a blend.
        text: what has come so far.
        served: digest that serves, and the route's reason; empty until it is known.
        ttft_ms, tokens_per_second, tokens: timings once it ended.
        rows, adapters: the largest batch that it was in, and distinct adapters in one of its steps.
        note: queue position, finish reason, or what went wrong.
    """

    title: str
    phase: LanePhase = LanePhase.WAITING
    text: str = ""
    served: str = ""
    ttft_ms: float = 0.0
    tokens_per_second: float = 0.0
    tokens: int = 0
    rows: int = 0
    adapters: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """Everything that is known now; the last picture stays when the daemon goes away."""

    link: LinkState = LinkState()
    status: Status | None = None
    seen: datetime | None = None
    trends: Trends = Trends()
    adapters: tuple[Adapter, ...] = ()
    jobs: tuple[Job, ...] = ()
    curves: Mapping[str, tuple[Progress, ...]] = field(default_factory=lambda: MappingProxyType({}))
    events: tuple[Event, ...] = ()
    routing: Routing = Routing()
    detail: AdapterDetail | None = None
    plan: PlanState = PlanState()
    lanes: tuple[Lane, ...] = ()
    log: JobLog = JobLog()

    @property
    def known(self) -> bool:
        """Whether a daemon has ever answered."""
        return self.status is not None

    @property
    def live(self) -> bool:
        """Whether what is shown is current."""
        return self.link.link is Link.CONNECTED
