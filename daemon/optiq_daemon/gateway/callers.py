"""Whom an HTTP request acts for."""

from __future__ import annotations

from starlette.requests import Request

from optiq_daemon.auth import Gatekeeper
from optiq_daemon.errors import ForbiddenError
from optiq_daemon.identity import caller, set_caller


def tenant_of(request: Request) -> str:
    """The tenant of a request, by the token in `Authorization: Bearer ...` or in `x-api-key`.

    While the daemon has no tokens, keys are not looked at, because the usual clients cannot leave them out; requests
    then act for the default tenant.

    Raises:
        UnauthenticatedError: a token is needed, and there is none that is valid.
    """
    keeper: Gatekeeper = request.app.state.gatekeeper
    sent = request.headers.getlist("authorization")
    sent += [f"Bearer {key}" for key in request.headers.getlist("x-api-key")] if not sent else []
    who = keeper.authenticate(sent if keeper.asks_for_tokens else [], local=False)
    set_caller(who)
    return who.tenant


def check_sees_all(request: Request) -> None:
    """Refuse callers that may not see what is everybody's, such as metrics by adapter.

    Raises:
        UnauthenticatedError: as :func:`tenant_of` does.
        ForbiddenError: a tenant's token.
    """
    keeper: Gatekeeper = request.app.state.gatekeeper
    tenant_of(request)
    if keeper.asks_for_tokens and not caller().admin:
        raise ForbiddenError("only an admin may read the metrics of all tenants", reason="ADMIN_ONLY")
