"""What the client returns about routes: frozen dataclasses, as in :mod:`optiq_client.types`."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class RouteCount:
    """What a target was used for since the daemon started; ``fallbacks`` were meant for another one."""

    target: str
    requests: int
    fallbacks: int


@dataclass(frozen=True, slots=True)
class Route:
    """One generation of a route; ``targets`` maps adapter id, ``id@version`` or ``base`` to its weight."""

    name: str
    targets: dict[str, int]
    fallbacks: tuple[str, ...]
    shadow: str
    sticky: bool
    generation: int
    change: str
    create_time: datetime | None
    update_time: datetime | None
    etag: str
    counts: tuple[RouteCount, ...] = field(default=())

    @property
    def id(self) -> str:
        """Last component of the name."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class RouteDecision:
    """One request's way: what was asked for, what serves it, and why."""

    time: datetime | None
    request_id: str
    requested: str
    target: str
    why: str
    generation: int


@dataclass(frozen=True, slots=True)
class RouteTrial:
    """Where requests would go: the first one's way, and counts over all of them."""

    decision: RouteDecision
    counts: tuple[RouteCount, ...]


@dataclass(frozen=True, slots=True)
class ShadowAnswer:
    """What a request was answered, and what the shadow would have answered."""

    time: datetime | None
    request_id: str
    target: str
    shadow: str
    digest: str
    shadow_digest: str
    answer: str
    shadow_answer: str
    outcome: str
    completion_tokens: int
    shadow_completion_tokens: int
    tokens_per_second: float
    shadow_tokens_per_second: float
