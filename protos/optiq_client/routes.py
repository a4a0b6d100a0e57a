# ruff: noqa: ASYNC109 - `timeout` is the deadline that goes over the wire
"""``client.routes`` of both clients: names that stand for several adapter versions, by weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from optiq_client import calls_routing as calls
from optiq_client.routing import Route, RouteDecision, RouteTrial, ShadowAnswer

if TYPE_CHECKING:
    from optiq_client.aio import AsyncClient
    from optiq_client.client import Client


class Routes:
    """``client.routes``: names that stand for several adapter versions, by weight."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def set(
        self,
        route: str,
        targets: Mapping[str, int] | None = None,
        *,
        fallbacks: Sequence[str] | None = None,
        shadow: str | None = None,
        sticky: bool | None = None,
        etag: str = "",
        timeout: float | None = None,
    ) -> Route:
        """Create a route, or change what is given. ``targets`` maps adapter, ``id@version`` or ``base`` to a weight."""
        call = calls.set_route(
            self._client.tenant, route, targets=targets, fallbacks=fallbacks, shadow=shadow, sticky=sticky, etag=etag
        )
        return self._client.run(call, timeout)

    def get(self, route: str, *, timeout: float | None = None) -> Route:
        """One route, by id or full name, with what its targets were used for."""
        return self._client.run(calls.get_route(self._client.tenant, route), timeout)

    def list(self, *, timeout: float | None = None) -> Sequence[Route]:
        """All routes of the tenant, by name."""
        found: list[Route] = []
        token = ""
        while True:
            page = self._client.run(calls.list_routes(self._client.tenant, token), timeout)
            found += page.items
            if not (token := page.next_token):
                return found

    def delete(self, route: str, *, etag: str = "", timeout: float | None = None) -> None:
        """Remove a route with its history."""
        self._client.run(calls.delete_route(self._client.tenant, route, etag), timeout)

    def promote(self, route: str, target: str = "", *, timeout: float | None = None) -> Route:
        """Give one target all of the weight; by default the shadow, else the one with the least weight above 0."""
        return self._client.run(calls.promote_route(self._client.tenant, route, target), timeout)

    def roll_back(self, route: str, generation: int = 0, *, timeout: float | None = None) -> Route:
        """Take up the content of an earlier generation, by default of the one before."""
        return self._client.run(calls.roll_back_route(self._client.tenant, route, generation), timeout)

    def history(self, route: str, *, timeout: float | None = None) -> Sequence[Route]:
        """Generations, newest first."""
        return self._client.run(calls.route_history(self._client.tenant, route), timeout)

    def attempt(self, route: str, *, sticky_key: str = "", count: int = 1, timeout: float | None = None) -> RouteTrial:
        """Where ``count`` requests would go now; nothing is served or counted."""
        return self._client.run(calls.try_route(self._client.tenant, route, sticky_key, count), timeout)

    def decisions(self, route: str, *, timeout: float | None = None) -> Sequence[RouteDecision]:
        """The latest requests' ways, newest first."""
        return self._client.run(calls.route_decisions(self._client.tenant, route), timeout)

    def shadow_answers(self, route: str, *, timeout: float | None = None) -> Sequence[ShadowAnswer]:
        """The latest comparisons with the shadow, newest first."""
        return self._client.run(calls.shadow_answers(self._client.tenant, route), timeout)


class AsyncRoutes:
    """``client.routes``: names that stand for several adapter versions, by weight."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def set(
        self,
        route: str,
        targets: Mapping[str, int] | None = None,
        *,
        fallbacks: Sequence[str] | None = None,
        shadow: str | None = None,
        sticky: bool | None = None,
        etag: str = "",
        timeout: float | None = None,
    ) -> Route:
        """Create a route, or change what is given. ``targets`` maps adapter, ``id@version`` or ``base`` to a weight."""
        call = calls.set_route(
            self._client.tenant, route, targets=targets, fallbacks=fallbacks, shadow=shadow, sticky=sticky, etag=etag
        )
        return await self._client.run(call, timeout)

    async def get(self, route: str, *, timeout: float | None = None) -> Route:
        """One route, by id or full name, with what its targets were used for."""
        return await self._client.run(calls.get_route(self._client.tenant, route), timeout)

    async def list(self, *, timeout: float | None = None) -> Sequence[Route]:
        """All routes of the tenant, by name."""
        found: list[Route] = []
        token = ""
        while True:
            page = await self._client.run(calls.list_routes(self._client.tenant, token), timeout)
            found += page.items
            if not (token := page.next_token):
                return found

    async def delete(self, route: str, *, etag: str = "", timeout: float | None = None) -> None:
        """Remove a route with its history."""
        await self._client.run(calls.delete_route(self._client.tenant, route, etag), timeout)

    async def promote(self, route: str, target: str = "", *, timeout: float | None = None) -> Route:
        """Give one target all of the weight; by default the shadow, else the one with the least weight above 0."""
        return await self._client.run(calls.promote_route(self._client.tenant, route, target), timeout)

    async def roll_back(self, route: str, generation: int = 0, *, timeout: float | None = None) -> Route:
        """Take up the content of an earlier generation, by default of the one before."""
        return await self._client.run(calls.roll_back_route(self._client.tenant, route, generation), timeout)

    async def history(self, route: str, *, timeout: float | None = None) -> Sequence[Route]:
        """Generations, newest first."""
        return await self._client.run(calls.route_history(self._client.tenant, route), timeout)

    async def attempt(
        self, route: str, *, sticky_key: str = "", count: int = 1, timeout: float | None = None
    ) -> RouteTrial:
        """Where ``count`` requests would go now; nothing is served or counted."""
        return await self._client.run(calls.try_route(self._client.tenant, route, sticky_key, count), timeout)

    async def decisions(self, route: str, *, timeout: float | None = None) -> Sequence[RouteDecision]:
        """The latest requests' ways, newest first."""
        return await self._client.run(calls.route_decisions(self._client.tenant, route), timeout)

    async def shadow_answers(self, route: str, *, timeout: float | None = None) -> Sequence[ShadowAnswer]:
        """The latest comparisons with the shadow, newest first."""
        return await self._client.run(calls.shadow_answers(self._client.tenant, route), timeout)
