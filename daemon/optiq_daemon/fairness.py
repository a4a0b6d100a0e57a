"""Weighted virtual token counters: who is served next.

The algorithm is VTC (Sheng et al., "Fairness in Serving Large Language Models", arXiv:2401.00588): every client has a
counter of the service that it got, `(input + 2 * output) / weight`; the backlogged client with the least is served
next; one that returns from idleness is lifted to the least of the active ones, so that it cannot save up a claim.
Two clients that are both backlogged then differ by no more than one client's largest uninterrupted piece of service.

A row keeps its place for a whole answer, so what an answer will take is charged when it is sent and corrected when it
ends (the paper's variant with predicted lengths). Otherwise whoever is behind is given rows until the tokens of the
first ones have come, which is too many.

Counters live in memory only. A restart ends every request, so all come back from idleness; what is lost is less than
the bound above, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

OUTPUT_COST = 2.0
# Weight of the newest answer in the expectation.
_NEW = 0.2


class VirtualCounters:
    """Counters by client.

    Args:
        weight: a client's weight now, above 0.
    """

    def __init__(self, weight: Callable[[str], float]) -> None:
        self._weight = weight
        self._served: dict[str, float] = {}
        # How often each client is active: once for each request that waits or runs.
        self._active: dict[str, int] = {}
        # The counter of the client that was the last to leave, for one that comes when nobody is there.
        self._last = 0.0

    def served(self, client: str) -> float:
        """Service of a client so far, in weighted units."""
        return self._served.get(client, 0.0)

    def enter(self, client: str) -> None:
        """A request of a client came."""
        if client not in self._active:
            level = min((self._served[other] for other in self._active), default=self._last)
            self._served[client] = max(self.served(client), level)
        self._active[client] = self._active.get(client, 0) + 1

    def leave(self, client: str) -> None:
        """One of its requests ended, or went away."""
        self._active[client] -= 1
        if not self._active[client]:
            del self._active[client]
            self._last = self._served[client]

    def charge(self, client: str, units: float) -> None:
        """Count service; negative where too much was counted before."""
        self._served[client] = self.served(client) + units / self._weight(client)

    @property
    def active(self) -> int:
        """Clients with a request that waits or runs."""
        return len(self._active)

    def next(self, clients: Iterable[str], busy: Callable[[str], float] = lambda _: 0) -> str | None:
        """The client to serve next; None if there is none. Of equal ones the least busy, then the first given."""
        return min(clients, key=lambda client: (self.served(client), busy(client)), default=None)


class ExpectedLengths:
    """Moving averages of the tokens of each client's answers; 0 before the first."""

    def __init__(self) -> None:
        self._means: dict[str, float] = {}

    def of(self, client: str) -> float:
        """Tokens that the client's next answer will have, as far as one can tell."""
        return self._means.get(client, 0.0)

    def observe(self, client: str, tokens: int) -> None:
        """An answer has ended."""
        mean = self._means.get(client)
        self._means[client] = tokens if mean is None else (1 - _NEW) * mean + _NEW * tokens
