"""Requests that are being served now, for admission and for dashboards. Holds no prompt and no answer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from optiq_daemon.errors import QueueFullError, UnavailableError
from optiq_daemon.router import Decision
from optiq_daemon.signals import Changed
from optiq_protos.v1 import generation_pb2


@dataclass
class LiveRequest:
    """One request. `began` and `first_token` are monotonic seconds, `start_time` is since the epoch.

    `adapter` is what was asked for, `parts` what serves.
    """

    request_id: str
    tenant: str
    adapter: str
    parts: list[generation_pb2.ServedAdapter] = field(default_factory=list)
    phase: str = "queued"
    # In its tenant's queue; 0 once it has its row.
    position: int = 0
    # The route that chose, its target, and why; empty if none did.
    route: str = ""
    target: str = ""
    why: str = ""
    completion_tokens: int = 0
    start_time: float = field(default_factory=time.time)
    began: float = field(default_factory=time.monotonic)
    first_token: float = 0.0
    last_token: float = 0.0

    def routed(self, decision: Decision | None) -> None:
        """Note what a route chose."""
        if decision is not None:
            self.route, self.target, self.why = decision.route.name, decision.target, decision.why

    def tokens(self, count: int) -> None:
        """Note tokens that came just now."""
        now = time.monotonic()
        self.first_token = self.first_token or now
        self.last_token = now
        self.completion_tokens += count
        self.phase = "decode"

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first, over their time; 0 before there are two."""
        seconds = self.last_token - self.first_token
        return (self.completion_tokens - 1) / seconds if seconds > 0 else 0.0

    @property
    def time_to_first_token_ms(self) -> float:
        """Admission to first token; 0 before it."""
        return (self.first_token - self.began) * 1000 if self.first_token else 0.0


class LiveTable:
    """Admits up to `limit` requests of each tenant at a time and counts them out.

    Args:
        limit: rows of the batch plus places in a tenant's queue.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._requests: dict[int, LiveRequest] = {}
        self._counts: Counter[str] = Counter()
        self._next = 0
        self._draining = False
        self._changed = Changed()
        # Raises for requests that must not be let in now; see :class:`optiq_daemon.jobs.policy.Pacer`.
        self.check: Callable[[], None] = lambda: None

    @contextmanager
    def admit(self, request: LiveRequest) -> Iterator[None]:
        """Hold a place while the request is served.

        Raises:
            QueueFullError: there is no place.
            UnavailableError: the daemon is stopping, or a training job has the machine to itself.
        """
        if self._draining:
            raise UnavailableError("the daemon is stopping", reason="DAEMON_STOPPING", retry_seconds=5.0)
        self.check()
        if self.count(request.tenant) >= self._limit:
            raise QueueFullError("requests", f"{self._limit} requests are being served or wait already")
        number, self._next = self._next, self._next + 1
        self._requests[number] = request
        self._counts[request.tenant] += 1
        try:
            yield
        finally:
            del self._requests[number]
            self._counts[request.tenant] -= 1
            self._changed.notify()

    def count(self, tenant: str) -> int:
        """Requests of a tenant that are served or wait."""
        return self._counts.get(tenant, 0)

    def requests(self) -> list[LiveRequest]:
        """All of them, oldest first."""
        return list(self._requests.values())

    def refuse(self) -> None:
        """Let no more in."""
        self._draining = True

    async def empty(self) -> None:
        """Wait until the last has ended."""
        while True:
            ticket = self._changed.ticket()
            if not self._requests:
                return
            await ticket.wait()
