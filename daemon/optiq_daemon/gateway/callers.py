"""Whom an HTTP request acts for."""

from __future__ import annotations

from starlette.requests import Request

from optiq_daemon.names import DEFAULT_TENANT


def tenant_of(request: Request) -> str:
    """The tenant of a request. Keys are not checked: only this machine reaches the gateway."""
    return DEFAULT_TENANT
