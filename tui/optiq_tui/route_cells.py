"""What the tables of the routing screen show of requests, routes and tenants."""

from __future__ import annotations

from rich.text import Text

from optiq_client import LiveRequest, Route, Tenant, humanize


def searched(request: LiveRequest) -> str:
    """What a filter looks at."""
    return " ".join((request.tenant, request.requested_adapter, request.route, request.route_target, request.phase))


def asked(request: LiveRequest) -> Text:
    """What a request asked for."""
    if request.route:
        return Text.assemble((request.route.rpartition("/")[2], "bold"), (" route", "dim"))
    return (
        Text(request.requested_adapter, style="bold") if request.requested_adapter else Text("base", style="italic dim")
    )


def first(request: LiveRequest) -> str:
    """Time to the first token."""
    return f"{request.time_to_first_token_ms:.0f} ms" if request.time_to_first_token_ms else "-"


def speed(request: LiveRequest) -> str:
    """Its own tokens a second."""
    return f"{request.tokens_per_second:.1f}" if request.tokens_per_second else "-"


def targets(route: Route) -> str:
    """A route's targets with their shares."""
    total = sum(route.targets.values()) or 1
    return ", ".join(f"{target} {weight / total:.0%}" for target, weight in route.targets.items())


def used(route: Route) -> str:
    """Requests that a route has served."""
    return humanize.count(sum(count.requests for count in route.counts))


def limit(value: int) -> str:
    """A quota; none is a dash."""
    return humanize.count(value) if value else "-"


def load(tenant: Tenant) -> str:
    """Requests that run, of how many, and those that wait."""
    load, quota = tenant.load, tenant.quotas.concurrent_requests
    running = f"{load.running_requests}/{quota}" if quota else str(load.running_requests)
    return f"{running} +{load.queued_requests}" if load.queued_requests else running


def memory(tenant: Tenant) -> str:
    """What a tenant's adapters take, of how much."""
    quota = tenant.quotas.resident_bytes
    used = humanize.size(tenant.load.resident_bytes)
    return f"{used} / {humanize.size(quota)}" if quota else used


def jobs(tenant: Tenant) -> str:
    """Open jobs, of how many."""
    quota = tenant.quotas.queued_jobs
    return f"{tenant.load.open_jobs}/{quota}" if quota else str(tenant.load.open_jobs or "-")
