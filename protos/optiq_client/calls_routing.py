"""RouteService as data, like :mod:`optiq_client.calls`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from optiq_client.calls import PAGE_SIZE, Call, Page, tenant_name
from optiq_client.convert import _optional_time
from optiq_client.routing import Route, RouteCount, RouteDecision, RouteTrial, ShadowAnswer
from optiq_protos.v1 import route_pb2

_SERVICE = "/optiq.v1.RouteService"


def route_name(tenant: str, route: str) -> str:
    """``tenants/{tenant}/routes/{route}`` for an id; a full name stays as it is."""
    return route if "/" in route else f"{tenant_name(tenant)}/routes/{route}"


def _counts(counts: Any) -> tuple[RouteCount, ...]:
    return tuple(RouteCount(count.target, count.requests, count.fallbacks) for count in counts)


def route(message: route_pb2.Route) -> Route:
    """A route."""
    return Route(
        name=message.name,
        targets={target.target: target.weight for target in message.targets},
        fallbacks=tuple(message.fallbacks),
        shadow=message.shadow,
        sticky=message.sticky,
        generation=message.generation,
        change=message.change,
        create_time=_optional_time(message, "create_time"),
        update_time=_optional_time(message, "update_time"),
        etag=message.etag,
        counts=_counts(message.counts),
    )


def _route(response: Any) -> Route:
    return route(response.route)


def _decision(message: route_pb2.RouteDecision) -> RouteDecision:
    return RouteDecision(
        _optional_time(message, "time"),
        message.request_id,
        message.requested,
        message.target,
        message.why,
        message.generation,
    )


def _shadow_answer(message: route_pb2.ShadowAnswer) -> ShadowAnswer:
    values = {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}
    return ShadowAnswer(**{**values, "time": _optional_time(message, "time")})


def set_route(
    tenant: str,
    route_id: str,
    *,
    targets: Mapping[str, int] | None,
    fallbacks: Sequence[str] | None,
    shadow: str | None,
    sticky: bool | None,
    etag: str,
) -> Call[Route]:
    """RouteService.UpdateRoute with what is given; the route is created if there is none."""
    message = route_pb2.Route(name=route_name(tenant, route_id), etag=etag)
    mask = []
    if targets is not None:
        mask.append("targets")
        message.targets.extend(route_pb2.RouteTarget(target=t, weight=w) for t, w in targets.items())
    if fallbacks is not None:
        mask.append("fallbacks")
        message.fallbacks.extend(fallbacks)
    if shadow is not None:
        mask.append("shadow")
        message.shadow = shadow
    if sticky is not None:
        mask.append("sticky")
        message.sticky = sticky
    request = route_pb2.UpdateRouteRequest(route=message, update_mask=FieldMask(paths=mask), allow_missing=True)
    return Call(f"{_SERVICE}/UpdateRoute", request, route_pb2.UpdateRouteResponse, _route)


def get_route(tenant: str, route_id: str) -> Call[Route]:
    """RouteService.GetRoute."""
    request = route_pb2.GetRouteRequest(name=route_name(tenant, route_id))
    return Call(f"{_SERVICE}/GetRoute", request, route_pb2.GetRouteResponse, _route)


def list_routes(tenant: str, page_token: str) -> Call[Page[Route]]:
    """RouteService.ListRoutes, one page."""
    return Call(
        f"{_SERVICE}/ListRoutes",
        route_pb2.ListRoutesRequest(parent=tenant_name(tenant), page_size=PAGE_SIZE, page_token=page_token),
        route_pb2.ListRoutesResponse,
        lambda r: Page([route(one) for one in r.routes], r.next_page_token),
    )


def delete_route(tenant: str, route_id: str, etag: str) -> Call[None]:
    """RouteService.DeleteRoute."""
    request = route_pb2.DeleteRouteRequest(name=route_name(tenant, route_id), etag=etag)
    return Call(f"{_SERVICE}/DeleteRoute", request, route_pb2.DeleteRouteResponse, lambda _: None)


def promote_route(tenant: str, route_id: str, target: str) -> Call[Route]:
    """RouteService.PromoteRoute."""
    request = route_pb2.PromoteRouteRequest(name=route_name(tenant, route_id), target=target)
    return Call(f"{_SERVICE}/PromoteRoute", request, route_pb2.PromoteRouteResponse, _route)


def roll_back_route(tenant: str, route_id: str, generation: int) -> Call[Route]:
    """RouteService.RollBackRoute."""
    request = route_pb2.RollBackRouteRequest(name=route_name(tenant, route_id), generation=generation)
    return Call(f"{_SERVICE}/RollBackRoute", request, route_pb2.RollBackRouteResponse, _route)


def route_history(tenant: str, route_id: str) -> Call[list[Route]]:
    """RouteService.ListRouteHistory."""
    return Call(
        f"{_SERVICE}/ListRouteHistory",
        route_pb2.ListRouteHistoryRequest(name=route_name(tenant, route_id)),
        route_pb2.ListRouteHistoryResponse,
        lambda r: [route(one) for one in r.routes],
    )


def try_route(tenant: str, route_id: str, sticky_key: str, count: int) -> Call[RouteTrial]:
    """RouteService.TryRoute."""
    return Call(
        f"{_SERVICE}/TryRoute",
        route_pb2.TryRouteRequest(name=route_name(tenant, route_id), sticky_key=sticky_key, count=count),
        route_pb2.TryRouteResponse,
        lambda r: RouteTrial(_decision(r.decision), _counts(r.counts)),
    )


def route_decisions(tenant: str, route_id: str) -> Call[list[RouteDecision]]:
    """RouteService.ListRouteDecisions."""
    return Call(
        f"{_SERVICE}/ListRouteDecisions",
        route_pb2.ListRouteDecisionsRequest(name=route_name(tenant, route_id)),
        route_pb2.ListRouteDecisionsResponse,
        lambda r: [_decision(one) for one in r.decisions],
    )


def shadow_answers(tenant: str, route_id: str) -> Call[list[ShadowAnswer]]:
    """RouteService.ListShadowAnswers."""
    return Call(
        f"{_SERVICE}/ListShadowAnswers",
        route_pb2.ListShadowAnswersRequest(name=route_name(tenant, route_id)),
        route_pb2.ListShadowAnswersResponse,
        lambda r: [_shadow_answer(one) for one in r.shadow_answers],
    )
