"""Routes and tenants of the fake daemon."""

from __future__ import annotations

from typing import Any

from optiq_protos.v1 import route_pb2, route_pb2_grpc, tenant_pb2, tenant_pb2_grpc


class FakeRoutes(route_pb2_grpc.RouteServiceServicer):
    """Reads, and the two changes that the dashboard makes."""

    def __init__(self) -> None:
        self.routes: dict[str, route_pb2.Route] = {}
        self.decisions: dict[str, list[route_pb2.RouteDecision]] = {}
        self.shadows: dict[str, list[route_pb2.ShadowAnswer]] = {}
        self.calls: list[Any] = []

    async def ListRoutes(self, request: Any, context: Any) -> Any:
        return route_pb2.ListRoutesResponse(routes=[self.routes[name] for name in sorted(self.routes)])

    async def ListRouteDecisions(self, request: Any, context: Any) -> Any:
        return route_pb2.ListRouteDecisionsResponse(decisions=self.decisions.get(request.name, []))

    async def ListShadowAnswers(self, request: Any, context: Any) -> Any:
        return route_pb2.ListShadowAnswersResponse(shadow_answers=self.shadows.get(request.name, []))

    async def PromoteRoute(self, request: Any, context: Any) -> Any:
        self.calls.append(request)
        route = self.routes[request.name]
        wanted = request.target or route.shadow
        for target in route.targets:
            target.weight = 1 if target.target == wanted else 0
        route.change = f"promoted {wanted}"
        route.generation += 1
        return route_pb2.PromoteRouteResponse(route=route)

    async def RollBackRoute(self, request: Any, context: Any) -> Any:
        self.calls.append(request)
        route = self.routes[request.name]
        route.change = f"rolled back to generation {route.generation - 1}"
        route.generation += 1
        return route_pb2.RollBackRouteResponse(route=route)


class FakeTenants(tenant_pb2_grpc.TenantServiceServicer):
    """Reads only."""

    def __init__(self) -> None:
        self.tenants: list[tenant_pb2.Tenant] = []

    async def ListTenants(self, request: Any, context: Any) -> Any:
        return tenant_pb2.ListTenantsResponse(tenants=self.tenants)
