"""``client.routes`` of both clients: names that stand for several adapter versions, by weight."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence

from optiq_client import calls_routing as calls
from optiq_client.halves import Described, Listed, Resource, awaited, awaited_list, blocking, blocking_list
from optiq_client.routing import Route, RouteDecision, RouteTrial, ShadowAnswer


class _Described(Resource):
    """What both halves do."""

    def set(
        self: Resource,
        route: str,
        targets: Mapping[str, int] | None = None,
        *,
        fallbacks: Sequence[str] | None = None,
        shadow: str | None = None,
        sticky: bool | None = None,
        etag: str = "",
        timeout: float | None = None,
    ) -> Described[Route]:
        """Create a route, or change what is given. ``targets`` maps adapter, ``id@version`` or ``base`` to a weight."""
        call = calls.set_route(
            self._tenant, route, targets=targets, fallbacks=fallbacks, shadow=shadow, sticky=sticky, etag=etag
        )
        return Described(call, timeout)

    def get(self: Resource, route: str, *, timeout: float | None = None) -> Described[Route]:
        """One route, by id or full name, with what its targets were used for."""
        return Described(calls.get_route(self._tenant, route), timeout)

    def list(self: Resource, *, timeout: float | None = None) -> Listed[Route]:
        """All routes of the tenant, by name."""
        return Listed(lambda token: calls.list_routes(self._tenant, token), timeout)

    def delete(self: Resource, route: str, *, etag: str = "", timeout: float | None = None) -> Described[None]:
        """Remove a route with its history."""
        return Described(calls.delete_route(self._tenant, route, etag), timeout)

    def promote(self: Resource, route: str, target: str = "", *, timeout: float | None = None) -> Described[Route]:
        """Give one target all of the weight; by default the shadow, else the one with the least weight above 0."""
        return Described(calls.promote_route(self._tenant, route, target), timeout)

    def roll_back(self: Resource, route: str, generation: int = 0, *, timeout: float | None = None) -> Described[Route]:
        """Take up the content of an earlier generation, by default of the one before."""
        return Described(calls.roll_back_route(self._tenant, route, generation), timeout)

    def history(self: Resource, route: str, *, timeout: float | None = None) -> Described[builtins.list[Route]]:
        """Generations, newest first."""
        return Described(calls.route_history(self._tenant, route), timeout)

    def attempt(
        self: Resource, route: str, *, sticky_key: str = "", count: int = 1, timeout: float | None = None
    ) -> Described[RouteTrial]:
        """Where ``count`` requests would go now; nothing is served or counted."""
        return Described(calls.try_route(self._tenant, route, sticky_key, count), timeout)

    def decisions(
        self: Resource, route: str, *, timeout: float | None = None
    ) -> Described[builtins.list[RouteDecision]]:
        """The latest requests' ways, newest first."""
        return Described(calls.route_decisions(self._tenant, route), timeout)

    def shadow_answers(
        self: Resource, route: str, *, timeout: float | None = None
    ) -> Described[builtins.list[ShadowAnswer]]:
        """The latest comparisons with the shadow, newest first."""
        return Described(calls.shadow_answers(self._tenant, route), timeout)


class Routes(Resource):
    """``client.routes``: names that stand for several adapter versions, by weight."""

    set = blocking(_Described.set)
    get = blocking(_Described.get)
    list = blocking_list(_Described.list)
    delete = blocking(_Described.delete)
    promote = blocking(_Described.promote)
    roll_back = blocking(_Described.roll_back)
    history = blocking(_Described.history)
    attempt = blocking(_Described.attempt)
    decisions = blocking(_Described.decisions)
    shadow_answers = blocking(_Described.shadow_answers)


class AsyncRoutes(Resource):
    """``client.routes``: names that stand for several adapter versions, by weight."""

    set = awaited(_Described.set)
    get = awaited(_Described.get)
    list = awaited_list(_Described.list)
    delete = awaited(_Described.delete)
    promote = awaited(_Described.promote)
    roll_back = awaited(_Described.roll_back)
    history = awaited(_Described.history)
    attempt = awaited(_Described.attempt)
    decisions = awaited(_Described.decisions)
    shadow_answers = awaited(_Described.shadow_answers)
