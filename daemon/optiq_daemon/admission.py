"""From a tenant's queue into the engine's rows: whose turn it is, and how many rows one tenant may hold.

A request waits in its own tenant's queue; the tenant with the least service by its weight
(:mod:`optiq_daemon.fairness`) sends the next one. No more are sent than the engine has rows, so that its own queue
stays empty and a choice is never undone by what was sent before. The last rows are kept for tenants that hold none:
rows cannot be taken back, and a newcomer would wait for a whole answer of somebody else. Its prompt is urgent in the
engine, where others' prompts wait for it.

Shadow requests get what is left. They start only while nobody waits and half of the rows are free, and give way as
soon as somebody needs theirs.
"""

from __future__ import annotations

import asyncio
import enum
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

from optiq_daemon.errors import QueueFullError
from optiq_daemon.fairness import OUTPUT_COST, ExpectedLengths, VirtualCounters
from optiq_daemon.quotas import QuotaGate

ROWS_PER_RESERVED = 16
# With fewer, keeping one back would cost more than a newcomer's wait, and skew the shares.
FEWEST_ROWS = 4


class _State(enum.Enum):
    WAITING = 1
    RUNNING = 2
    ENDED = 3


class Ticket:
    """One request's place, from its queue to its end.

    Attributes:
        urgent: its tenant held no row when it was given this one, and another tenant held several.
    """

    def __init__(self, admission: Admission, tenant: str, estimate: int, longest: int) -> None:
        self.tenant = tenant
        self.position = 0
        self.urgent = False
        self._admission = admission
        self._state = _State.WAITING
        self._changed = asyncio.Event()
        # What has been charged for the prompt: an estimate when it is sent, the truth when the engine has told.
        self._prompt = estimate
        self._longest = longest
        # Tokens of the answer: charged in advance, and come.
        self._expected = 0.0
        self._come = 0

    async def turn(self) -> AsyncIterator[int]:
        """Positions while it waits, 1 is next, each once; ends when its row is there."""
        told = 0
        while self._state is _State.WAITING:
            if self.position != told:
                told = self.position
                yield told
            self._changed.clear()
            if self._state is _State.WAITING and self.position == told:
                await self._changed.wait()

    def started(self, computed: int) -> None:
        """The engine has begun; `computed` prompt tokens did not come from the prefix cache."""
        self._admission.charge(self.tenant, computed - self._prompt)
        self._prompt = computed
        self._admission.spend(self.tenant, computed)

    def generated(self, tokens: int) -> None:
        """Tokens came."""
        before, self._come = self._come, self._come + tokens
        beyond = max(self._come - self._expected, 0.0) - max(before - self._expected, 0.0)
        self._admission.charge(self.tenant, OUTPUT_COST * beyond)
        self._admission.spend(self.tenant, tokens)

    def _sent(self, expected: float, *, urgent: bool) -> None:
        self.urgent = urgent
        self._expected = min(expected, self._longest)
        self._state = _State.RUNNING
        self._admission.charge(self.tenant, self._prompt + OUTPUT_COST * self._expected)
        self._changed.set()

    def _ended(self) -> int:
        """Give back what was charged and did not come; returns the answer's tokens."""
        self._admission.charge(self.tenant, -OUTPUT_COST * max(self._expected - self._come, 0.0))
        return self._come


class ShadowTicket:
    """A shadow request's row."""

    def __init__(self) -> None:
        self.given = asyncio.Event()
        self.evicted = asyncio.Event()


class Admission:
    """The queues of all tenants; lives on the event loop.

    Args:
        rows: of the engine's batch.
        max_waiting: requests that may wait in one tenant's queue.
        weight: a tenant's weight now.
        tenants: how many there are, idle ones included.
    """

    def __init__(
        self,
        rows: int,
        max_waiting: int,
        gate: QuotaGate,
        *,
        weight: Callable[[str], float],
        tenants: Callable[[], int],
    ) -> None:
        self._rows = rows
        self._max_waiting = max_waiting
        self._gate = gate
        self._tenants = tenants
        self._counters = VirtualCounters(weight)
        self._lengths = ExpectedLengths()
        self._queues: dict[str, deque[Ticket]] = {}
        self._running: Counter[str] = Counter()
        self._in_use = 0
        self._shadows_waiting: deque[ShadowTicket] = deque()
        self._shadows_running: deque[ShadowTicket] = deque()

    @contextmanager
    def enter(self, tenant: str, estimate: int, longest: int) -> Iterator[Ticket]:
        """Queue a request; inside, wait for :meth:`Ticket.turn`. Leaving gives the place or the row up.

        Args:
            estimate: prompt tokens, roughly; corrected when the engine has counted them.
            longest: tokens of the answer at most.

        Raises:
            QueueFullError: the tenant's queue has no place.
            QuotaError: one of the tenant's quotas is reached.
        """
        queue = self._queues.setdefault(tenant, deque())
        if queue or not self._may_run(tenant):
            self._gate.check(tenant, "queued_requests", len(queue))
            if len(queue) >= self._max_waiting:
                raise QueueFullError("requests", f"{len(queue)} requests of tenant {tenant!r} wait already")
        ticket = Ticket(self, tenant, estimate, longest)
        self._counters.enter(tenant)
        queue.append(ticket)
        self._pump()
        self._number(tenant)
        try:
            yield ticket
        finally:
            if ticket._state is _State.WAITING:
                queue.remove(ticket)
                self._number(tenant)
            else:
                self._running[tenant] -= 1
                self._in_use -= 1
                self._lengths.observe(tenant, ticket._ended())
            ticket._state = _State.ENDED
            self._counters.leave(tenant)
            self._pump()

    @contextmanager
    def shadow(self) -> Iterator[ShadowTicket]:
        """Wait, inside, for a row that nobody needs; it is taken back when `evicted` is set."""
        ticket = ShadowTicket()
        self._shadows_waiting.append(ticket)
        self._pump()
        try:
            yield ticket
        finally:
            for queue in (self._shadows_waiting, self._shadows_running):
                if ticket in queue:
                    queue.remove(ticket)
            self._pump()

    def running(self, tenant: str) -> int:
        """Rows that a tenant holds."""
        return self._running[tenant]

    def waiting(self, tenant: str) -> int:
        """Requests in a tenant's queue."""
        return len(self._queues.get(tenant, ()))

    def served(self, tenant: str) -> float:
        """A tenant's virtual tokens."""
        return self._counters.served(tenant)

    def charge(self, tenant: str, units: float) -> None:
        """Count service."""
        self._counters.charge(tenant, units)

    def spend(self, tenant: str, tokens: int) -> None:
        """Count tokens on the tenant's rate."""
        self._gate.spend(tenant, tokens)

    @property
    def reserve(self) -> int:
        """Rows that are kept for tenants that hold none."""
        everybody = sum(bool(queue) and self._running[tenant] > 0 for tenant, queue in self._queues.items())
        if self._rows < FEWEST_ROWS or everybody >= self._tenants():
            return 0
        return max(1, self._rows // ROWS_PER_RESERVED)

    def _may_run(self, tenant: str) -> bool:
        free = self._rows - self._in_use
        return free > (self.reserve if self._running[tenant] else 0)

    def _next(self) -> str | None:
        """Whose request goes now.

        One that is refused a kept row keeps its turn: who is behind by its share would stay behind otherwise. But the
        kept row is for who has just this one request, whatever it has had so far.
        """
        waiting = [tenant for tenant, queue in self._queues.items() if queue]
        first = self._counters.next(waiting, self._running.__getitem__)
        if first is None or self._may_run(first):
            return first
        single = [one for one in waiting if len(self._queues[one]) == 1 and not self._running[one]]
        return self._counters.next(one for one in single if self._may_run(one))

    def _pump(self) -> None:
        """Give free rows to those whose turn it is, then to shadows."""
        while (tenant := self._next()) is not None:
            ticket = self._queues[tenant].popleft()
            urgent = not self._running[tenant] and max(self._running.values(), default=0) > 1
            self._running[tenant] += 1
            self._in_use += 1
            ticket._sent(self._lengths.of(tenant), urgent=urgent)
            self._number(tenant)
        # The engine would run one row more than it has: a shadow makes room at its next step.
        while self._shadows_running and self._in_use + len(self._shadows_running) > self._rows:
            self._shadows_running.pop().evicted.set()
        while self._shadows_waiting and self._leisure():
            ticket_ = self._shadows_waiting.popleft()
            self._shadows_running.append(ticket_)
            ticket_.given.set()

    def _leisure(self) -> bool:
        used = self._in_use + len(self._shadows_running)
        return not any(self._queues.values()) and (used < self._rows // 2 or used == 0)

    def _number(self, tenant: str) -> None:
        for position, ticket in enumerate(self._queues[tenant], start=1):
            if ticket.position != position:
                ticket.position = position
                ticket._changed.set()
