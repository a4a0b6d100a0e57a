"""`optiq.v1.RouteService`."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from optiq_daemon import convert
from optiq_daemon.errors import InvalidRequestError
from optiq_daemon.names import RouteKey, check_id, parse_parent, parse_route
from optiq_daemon.router import Decision, Router
from optiq_daemon.routes import RouteRecord, Routes, Shape, Target
from optiq_daemon.shadow import Shadows
from optiq_daemon.tenants import Tenants
from optiq_protos.v1 import route_pb2, route_pb2_grpc

MAX_TRIES = 100_000
_MASK = ("targets", "fallbacks", "shadow", "sticky")


class RouteService(route_pb2_grpc.RouteServiceServicer):
    """Translates between the wire, the routes and the router."""

    def __init__(self, routes: Routes, router: Router, shadows: Shadows, tenants: Tenants) -> None:
        self._routes = routes
        self._router = router
        self._shadows = shadows
        self._tenants = tenants

    async def CreateRoute(self, request: route_pb2.CreateRouteRequest, _: Any) -> route_pb2.CreateRouteResponse:
        """Add a route."""
        key = RouteKey(self._tenant(request.parent), check_id(request.route_id, "route_id"))
        record = self._routes.create(key, _shape(Shape(), request.route, _MASK))
        return route_pb2.CreateRouteResponse(route=self._message(record))

    async def GetRoute(self, request: route_pb2.GetRouteRequest, _: Any) -> route_pb2.GetRouteResponse:
        """One route."""
        return route_pb2.GetRouteResponse(route=self._message(self._routes.get(parse_route(request.name))))

    async def ListRoutes(self, request: route_pb2.ListRoutesRequest, _: Any) -> route_pb2.ListRoutesResponse:
        """A page, ordered by name."""
        tenant = self._tenant(request.parent)
        size, scope = convert.page_size(request.page_size), f"routes/{tenant}"
        cursor = convert.page_cursor(scope, request.page_token, tuple[str])
        records = [r for r in self._routes.of(tenant) if cursor is None or r.id > cursor[0]]
        page = records[:size]
        more = convert.page_token(scope, [page[-1].id]) if len(records) > size else ""
        return route_pb2.ListRoutesResponse(routes=[self._message(r) for r in page], next_page_token=more)

    async def UpdateRoute(self, request: route_pb2.UpdateRouteRequest, _: Any) -> route_pb2.UpdateRouteResponse:
        """Change the fields of the mask, or create."""
        given = request.route
        key = parse_route(given.name, "route.name")
        mask = tuple(request.update_mask.paths) or _MASK
        if unknown := sorted(set(mask) - set(_MASK)):
            raise InvalidRequestError.of("update_mask", f"{', '.join(unknown)}: not one of {', '.join(_MASK)}")
        old = self._routes.find(key)
        if old is None and request.allow_missing and not given.etag:
            self._tenants.get(key.tenant)
            return route_pb2.UpdateRouteResponse(
                route=self._message(self._routes.create(key, _shape(Shape(), given, mask)))
            )
        shape = _shape(self._routes.get(key).shape, given, mask)
        record = self._routes.update(key, shape, f"set {', '.join(mask)}", given.etag)
        return route_pb2.UpdateRouteResponse(route=self._message(record))

    async def DeleteRoute(self, request: route_pb2.DeleteRouteRequest, _: Any) -> route_pb2.DeleteRouteResponse:
        """Remove a route."""
        key = parse_route(request.name)
        self._routes.delete(key, request.etag)
        self._router.forget(key)
        return route_pb2.DeleteRouteResponse()

    async def PromoteRoute(self, request: route_pb2.PromoteRouteRequest, _: Any) -> route_pb2.PromoteRouteResponse:
        """Give one target all of the weight."""
        record = self._routes.promote(parse_route(request.name), request.target)
        return route_pb2.PromoteRouteResponse(route=self._message(record))

    async def RollBackRoute(self, request: route_pb2.RollBackRouteRequest, _: Any) -> route_pb2.RollBackRouteResponse:
        """Take up an earlier generation."""
        if request.generation < 0:
            raise InvalidRequestError.of("generation", f"must be 0 (the one before) or more, is {request.generation}")
        record = self._routes.roll_back(parse_route(request.name), request.generation)
        return route_pb2.RollBackRouteResponse(route=self._message(record))

    async def ListRouteHistory(
        self, request: route_pb2.ListRouteHistoryRequest, _: Any
    ) -> route_pb2.ListRouteHistoryResponse:
        """Generations, newest first."""
        records = self._routes.history(parse_route(request.name))
        return route_pb2.ListRouteHistoryResponse(routes=[_message(record) for record in records])

    async def TryRoute(self, request: route_pb2.TryRouteRequest, _: Any) -> route_pb2.TryRouteResponse:
        """Where requests would go."""
        key = parse_route(request.name)
        if not 0 <= request.count <= MAX_TRIES:
            raise InvalidRequestError.of("count", f"must be 0 (for 1) to {MAX_TRIES}, is {request.count}")
        made = [self._router.attempt(key, request.sticky_key) for _ in range(request.count or 1)]
        requests = Counter(decision.target for decision in made)
        fallbacks = Counter(decision.target for decision in made if decision.why.startswith("fallback"))
        return route_pb2.TryRouteResponse(
            decision=_decision(made[0]),
            counts=[
                route_pb2.RouteTargetCount(target=target, requests=count, fallbacks=fallbacks[target])
                for target, count in sorted(requests.items())
            ],
        )

    async def ListRouteDecisions(
        self, request: route_pb2.ListRouteDecisionsRequest, _: Any
    ) -> route_pb2.ListRouteDecisionsResponse:
        """The latest decisions, newest first."""
        key = self._routes.get(parse_route(request.name)).key
        return route_pb2.ListRouteDecisionsResponse(
            decisions=[_decision(decision) for decision in self._router.decisions(key)]
        )

    async def ListShadowAnswers(
        self, request: route_pb2.ListShadowAnswersRequest, _: Any
    ) -> route_pb2.ListShadowAnswersResponse:
        """The latest comparisons, newest first."""
        key = self._routes.get(parse_route(request.name)).key
        answers = [msgspec.structs.asdict(answer) for answer in self._shadows.answers(key)]
        return route_pb2.ListShadowAnswersResponse(
            shadow_answers=[
                route_pb2.ShadowAnswer(**{**answer, "time": convert.timestamp(answer["time"])}) for answer in answers
            ]
        )

    def _tenant(self, parent: str) -> str:
        return self._tenants.get(parse_parent(parent)).id

    def _message(self, record: RouteRecord) -> route_pb2.Route:
        message = _message(record)
        for target, requests, fallbacks in self._router.counts(record.key):
            message.counts.add(target=target, requests=requests, fallbacks=fallbacks)
        return message


def _shape(old: Shape, given: route_pb2.Route, mask: tuple[str, ...]) -> Shape:
    values: dict[str, Any] = {
        "targets": tuple(Target(target.target, target.weight) for target in given.targets),
        "fallbacks": tuple(given.fallbacks),
        "shadow": given.shadow,
        "sticky": given.sticky,
    }
    return msgspec.structs.replace(old, **{field: values[field] for field in mask})


def _message(record: RouteRecord) -> route_pb2.Route:
    shape = record.shape
    return route_pb2.Route(
        name=record.key.name,
        targets=[route_pb2.RouteTarget(target=t.target, weight=t.weight) for t in shape.targets],
        fallbacks=shape.fallbacks,
        shadow=shape.shadow,
        sticky=shape.sticky,
        generation=record.generation,
        change=record.change,
        create_time=convert.timestamp(record.create_time),
        update_time=convert.timestamp(record.update_time),
        etag=record.etag,
    )


def _decision(decision: Decision) -> route_pb2.RouteDecision:
    return route_pb2.RouteDecision(
        time=convert.timestamp(decision.time),
        request_id=decision.request_id,
        requested=decision.requested,
        target=decision.target,
        why=decision.why,
        generation=decision.generation,
    )
