"""Which adapter serves a request: the caller's own, a shared one, or what a route chooses."""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from optiq_daemon.errors import NotFoundError, RequestError
from optiq_daemon.events import EventLog
from optiq_daemon.identity import caller
from optiq_daemon.names import AdapterKey, RouteKey, parse_adapter, parse_adapter_ref
from optiq_daemon.registry import Registry, Resolved, not_found, not_served
from optiq_daemon.routes import BASE, RouteRecord, Routes, Target
from optiq_daemon.tenants import Tenants, unknown_tenant

KEPT_DECISIONS = 200
EVENT_EVERY_S = 10.0


class Decision(NamedTuple):
    """How a route sent one request; `time` is in seconds since the epoch."""

    route: RouteKey
    generation: int
    time: float
    request_id: str
    requested: str
    target: str
    why: str
    shadow: str


class Chosen(NamedTuple):
    """What serves a request; `decision` is None where no route took part."""

    adapter: str
    version: str
    decision: Decision | None


def rendezvous(targets: Sequence[Target], key: str) -> str:
    """The target of a sticky key, by weighted rendezvous hashing.

    Each target draws `-weight / ln(u)` with its own hash `u` of the key, and the largest wins: shares are the weights,
    and a changed weight moves only keys to or from the target that it belongs to. (Rendezvous hashing: Thaler and
    Ravishankar, 1998.)
    """

    def score(target: Target) -> float:
        digest = hashlib.blake2b(f"{target.target}\0{key}".encode(), digest_size=8).digest()
        return -target.weight / math.log((int.from_bytes(digest) + 1) / (2**64 + 2))

    return max((t for t in targets if t.weight), key=score).target


class Router:
    """Resolves the names that requests use; lives on the event loop.

    Args:
        draw: a number in [0, 1), for requests without a sticky key.
    """

    def __init__(
        self,
        registry: Registry,
        tenants: Tenants,
        routes: Routes,
        events: EventLog,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._registry = registry
        self._tenants = tenants
        self._routes = routes
        self._events = events
        self._draw = draw
        self._logs: dict[RouteKey, _RouteLog] = {}

    def choose(
        self, tenant: str, adapter: str, version: str, *, route: str = "", sticky_key: str = "", request_id: str = ""
    ) -> Chosen:
        """What a request gets: its adapter as it is, or the target of a route of that name.

        Raises:
            NotFoundError: there is no such route, or none of its targets is there.
            RequestError: none of its targets can be used; the reason is the first one's.
        """
        name = route or ("" if version or "/" in adapter else adapter)
        if not name:
            return Chosen(adapter, version, None)
        key = RouteKey(tenant, name)
        record = self._routes.get(key) if route else self._routes.find(key)
        if record is None:
            return Chosen(adapter, version, None)
        decision = self._decide(record, sticky_key)._replace(request_id=request_id, requested=route or adapter)
        self._log(key).add(decision)
        return Chosen(*split_target(decision.target), decision)

    def acquire(self, tenant: str, adapter: str, version: str) -> Resolved:
        """Resolve an adapter, once, and lease its version. An empty adapter is the bare base.

        Args:
            tenant: whom the request acts for.
            adapter: an id, of the tenant's own adapter or else of a shared one, or a full name.

        Raises:
            NotFoundError: no such tenant, name, or version, or none that the caller may see.
            RefusedError: the name is quarantined, or not installed yet, and has no version.
        """
        key = self._key(tenant, adapter)
        if tenant not in self._tenants:
            raise unknown_tenant(tenant)
        return self._registry.acquire(key.tenant, key.adapter, version)

    def attempt(self, key: RouteKey, sticky_key: str) -> Decision:
        """Where a request would go now; nothing is counted."""
        return self._decide(self._routes.get(key), sticky_key)

    def decisions(self, key: RouteKey) -> list[Decision]:
        """The latest, newest first."""
        return list(reversed(self._log(key).recent))

    def counts(self, key: RouteKey) -> list[tuple[str, int, int]]:
        """Target, requests and fallbacks among them, since the daemon started."""
        log = self._log(key)
        return [(target, count, log.fallbacks[target]) for target, count in sorted(log.requests.items())]

    def forget(self, key: RouteKey) -> None:
        """The route is gone."""
        self._logs.pop(key, None)

    def _decide(self, record: RouteRecord, sticky_key: str) -> Decision:
        targets, shape = record.shape.targets, record.shape
        total = sum(target.weight for target in targets)
        if shape.sticky and sticky_key:
            chosen, how = rendezvous(targets, sticky_key), "sticky key"
        else:
            chosen, how = self._drawn(targets, total), ""
        problems: list[tuple[str, RequestError]] = []
        for target in self._chain(record, chosen):
            problem = self._problem(record.tenant, target)
            if problem is None:
                weight = next((t.weight for t in targets if t.target == target), 0)
                why = f"{how + ', ' if how else ''}weight {weight} of {total}"
                if problems:
                    why = f"fallback: {problems[0][0]} {_short(problems[0][1])}"
                return Decision(record.key, record.generation, time.time(), "", record.id, target, why, shape.shadow)
            problems.append((target, problem))
        raise problems[0][1]

    def _drawn(self, targets: Sequence[Target], total: int) -> str:
        left = self._draw() * total
        for target in targets:
            left -= target.weight
            if left < 0:
                return target.target
        return max(targets, key=lambda target: target.weight).target

    @staticmethod
    def _chain(record: RouteRecord, chosen: str) -> Iterator[str]:
        """The chosen target, the others by weight, then the fallbacks."""
        others = sorted((t for t in record.shape.targets if t.weight), key=lambda t: -t.weight)
        yield from dict.fromkeys((chosen, *(t.target for t in others), *record.shape.fallbacks))

    def _problem(self, tenant: str, target: str) -> RequestError | None:
        """Why a target cannot be used now; None if it can."""
        adapter, version = split_target(target)
        if not adapter:
            return None
        key = self._key(tenant, adapter)
        record = self._registry.find(key)
        if record is None:
            return not_found(key)
        if version:
            try:
                self._registry.history.resolve(record, version)
            except NotFoundError as error:
                return error
        elif not record.digest:
            return not_served(record, self._registry.state(key))
        return None

    def _key(self, tenant: str, adapter: str) -> AdapterKey:
        if not adapter.startswith("tenants/"):
            own = AdapterKey(tenant, adapter)
            if adapter and self._registry.find(own) is None and (owner := self._tenants.shared_owner(adapter)):
                return AdapterKey(owner, adapter)
            return own
        key = parse_adapter(adapter, "adapter")
        if not caller().sees(key.tenant) and not self._tenants.is_shared(key):
            raise not_found(key)
        return key

    def _log(self, key: RouteKey) -> _RouteLog:
        if key not in self._logs:
            self._logs[key] = _RouteLog(key, self._events)
        return self._logs[key]


class _RouteLog:
    """One route's decisions: the latest, how many of each kind, and an event about them now and then."""

    def __init__(self, key: RouteKey, events: EventLog) -> None:
        self.recent: deque[Decision] = deque(maxlen=KEPT_DECISIONS)
        self.requests: Counter[str] = Counter()
        self.fallbacks: Counter[str] = Counter()
        self._key = key
        self._events = events
        self._told: Counter[str] = Counter()
        self._told_at = 0.0

    def add(self, decision: Decision) -> None:
        self.recent.append(decision)
        self.requests[decision.target] += 1
        self.fallbacks[decision.target] += decision.why.startswith("fallback")
        now = time.monotonic()
        if not self._told_at or now - self._told_at >= EVENT_EVERY_S:
            fresh = self.requests - self._told
            text = ", ".join(f"{target} {count}" for target, count in sorted(fresh.items()))
            self._events.append("route.decisions", self._key.name, text, {k: str(v) for k, v in fresh.items()})
            self._told, self._told_at = Counter(self.requests), now


def split_target(target: str) -> tuple[str, str]:
    """Adapter and version of a target; both are empty for the bare base."""
    return ("", "") if target == BASE else parse_adapter_ref(target)


def _short(problem: RequestError) -> str:
    return {"NOT_FOUND": "is missing", "ADAPTER_QUARANTINED": "is quarantined"}.get(
        problem.reason, "is not installed yet"
    )
