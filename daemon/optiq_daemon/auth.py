"""From a call to its caller: the socket that it came through, and its token.

===========================  =====================================  ==================================================
came through                 without a token                        with a token
===========================  =====================================  ==================================================
the Unix socket (0700)       the daemon's owner: admin              that token's tenant and role
TCP, no token exists yet     tenant ``default``, if loopback        UNAUTHENTICATED
TCP                          UNAUTHENTICATED                        that token's tenant and role
===========================  =====================================  ==================================================

With ``require_tokens`` the Unix socket asks for one too. The check runs before a request is decoded.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from optiq_daemon.errors import UnauthenticatedError
from optiq_daemon.identity import OWNER, Caller
from optiq_daemon.scope import Scope
from optiq_daemon.tenants import Tenants

# Says no more than that a daemon is there, and what its public protocol is.
OPEN_SERVICES = ("/grpc.health.v1.", "/grpc.reflection.")
_SCHEME = "bearer "


class Gatekeeper:
    """Tells who calls, and keeps callers inside what they may name: the daemon's :class:`interceptor.Guard`.

    Args:
        require_tokens: also on the Unix socket.
        public: other machines reach the daemon; it then asks for a token also after the last one was revoked.
    """

    def __init__(self, tenants: Tenants, scope: Scope, *, require_tokens: bool = False, public: bool = False) -> None:
        self._tenants = tenants
        self._scope = scope
        self._require = require_tokens
        self._public = public

    @property
    def asks_for_tokens(self) -> bool:
        """Whether a caller that does not come through the Unix socket needs one."""
        return self._require or self._public or self._tenants.tokens.any()

    def caller(self, context: Any, method: str) -> Caller:
        """The caller of a gRPC call.

        Raises:
            UnauthenticatedError: there is no token where one is needed, or it is not valid.
        """
        if method.startswith(OPEN_SERVICES):
            return Caller(tenant="", admin=False, trusted=False)
        local = context.peer().startswith("unix:")
        sent = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
        return self.authenticate(sent, local=local)

    def authenticate(self, sent: list[str], *, local: bool) -> Caller:
        """The caller that sent these `authorization` values.

        Raises:
            UnauthenticatedError: as :meth:`caller` does.
        """
        if sent:
            return self._by_token(sent)
        if local and not self._require:
            return OWNER
        if not self.asks_for_tokens:
            return Caller(admin=False, trusted=True)
        raise UnauthenticatedError(
            "this daemon asks for a token: set OPTIQ_TOKEN or OPTIQ_TOKEN_FILE, or give the client a token; "
            "the daemon's owner makes one with 'optiq tenants token TENANT'",
            reason="TOKEN_MISSING",
        )

    def check(self, caller: Caller, request: Message) -> None:
        """Refuse a request that is not this caller's to make, as :meth:`Scope.check` does."""
        self._scope.check(caller, request)

    def _by_token(self, sent: list[str]) -> Caller:
        text = sent[0]
        tenant = ""
        if len(sent) == 1 and text[: len(_SCHEME)].lower() == _SCHEME:
            tenant = self._tenants.tokens.tenant_of(text[len(_SCHEME) :].strip())
        if not tenant:
            raise UnauthenticatedError("the token is not valid, or was revoked", reason="TOKEN_INVALID")
        return Caller(tenant, admin=self._tenants.find(tenant).role == "admin", trusted=False)
