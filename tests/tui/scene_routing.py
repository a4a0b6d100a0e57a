"""Routes and tenants of the scene."""

from __future__ import annotations

from optiq_protos.v1 import route_pb2, tenant_pb2
from tests.tui.fake_daemon import FakeDaemon
from tests.tui.scene_adapters import MIB, TENANT, ago


def fill_routing(daemon: FakeDaemon) -> None:
    """Routes with their decisions and shadow answers, and three tenants."""
    targets = [("legal-summaries@v3", 90), ("legal-summaries@v4", 10)]
    support = route_pb2.Route(
        name=f"{TENANT}/routes/support",
        targets=[route_pb2.RouteTarget(target=target, weight=weight) for target, weight in targets],
        fallbacks=["base"],
        shadow="legal-summaries@v5",
        sticky=True,
        generation=4,
        change="weights set",
        create_time=ago(86400),
        update_time=ago(1200),
        counts=[
            route_pb2.RouteTargetCount(target="legal-summaries@v3", requests=1_804),
            route_pb2.RouteTargetCount(target="legal-summaries@v4", requests=197, fallbacks=2),
            route_pb2.RouteTargetCount(target="base", requests=3, fallbacks=3),
        ],
    )
    numbers = route_pb2.Route(
        name=f"{TENANT}/routes/numbers",
        targets=[route_pb2.RouteTarget(target="roman", weight=1), route_pb2.RouteTarget(target="units", weight=1)],
        generation=1,
        change="created",
        create_time=ago(4000),
        update_time=ago(4000),
        counts=[
            route_pb2.RouteTargetCount(target="roman", requests=211),
            route_pb2.RouteTargetCount(target="units", requests=205),
        ],
    )
    for route in (support, numbers):
        daemon.routing.routes[route.name] = route
    ways = [
        (1, "b20c11", "legal-summaries@v4", "weight 10 of 100"),
        (4, "b20c0e", "legal-summaries@v3", "weight 90 of 100, sticky key"),
        (9, "b20c0b", "legal-summaries@v3", "weight 90 of 100, sticky key"),
        (31, "b20c05", "base", "fallback: legal-summaries@v4 is loading"),
    ]
    daemon.routing.decisions[support.name] = [
        route_pb2.RouteDecision(
            time=ago(age), request_id=f"req-{rid}", requested="support", target=target, why=why, generation=4
        )
        for age, rid, target, why in ways
    ]
    answers = [
        (4, "b20c0e", "The clause ends the lease after 30 days.", "The lease ends 30 days after notice.", "ANSWERED"),
        (9, "b20c0b", "Both parties share the costs.", "The costs are shared.", "ANSWERED"),
        (12, "b20c0a", "No penalty applies.", "", "EVICTED"),
    ]
    daemon.routing.shadows[support.name] = [
        route_pb2.ShadowAnswer(
            time=ago(age),
            request_id=f"req-{rid}",
            target="legal-summaries@v3",
            shadow="legal-summaries@v5",
            answer=answer,
            shadow_answer=other,
            outcome=outcome,
            completion_tokens=len(answer.split()),
            shadow_completion_tokens=len(other.split()),
            tokens_per_second=8.3,
            shadow_tokens_per_second=8.1 if other else 0,
        )
        for age, rid, answer, other, outcome in answers
    ]
    shares = [
        ("default", 3.0, 4, 0, 3_120.0, 0),
        ("acme", 1.0, 1, 1, 9_210.0, 60_000),
        ("lab", 0.5, 0, 0, 120.0, 20_000),
    ]
    for name, weight, running, queued, tokens, quota in shares:
        daemon.tenancy.tenants.append(
            tenant_pb2.Tenant(
                name=f"tenants/{name}",
                role=tenant_pb2.TENANT_ROLE_ADMIN if name == "default" else tenant_pb2.TENANT_ROLE_TENANT,
                weight=weight,
                quotas=tenant_pb2.TenantQuotas(
                    concurrent_requests=8 if quota else 0,
                    tokens_per_minute=quota,
                    resident_bytes=64 * MIB if quota else 0,
                    queued_jobs=2 if quota else 0,
                ),
                load=tenant_pb2.TenantLoad(
                    running_requests=running,
                    queued_requests=queued,
                    adapter_count={"default": 5, "acme": 2, "lab": 0}[name],
                    resident_bytes={"default": 9, "acme": 2, "lab": 0}[name] * MIB,
                    open_jobs=2 if name == "default" else 0,
                    virtual_tokens=tokens,
                ),
            )
        )
