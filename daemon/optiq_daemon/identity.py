"""Who is calling. Set once per call, before its handler runs; what it may see follows from it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import NamedTuple

from optiq_daemon.names import DEFAULT_TENANT


class Caller(NamedTuple):
    """One caller.

    `tenant` is who it is and whom it acts for where a request does not say. An `admin` may act for every tenant.
    `trusted` callers run as the daemon's own user and may name any path that it can read.
    """

    tenant: str = DEFAULT_TENANT
    admin: bool = True
    trusted: bool = True

    def sees(self, tenant: str) -> bool:
        """Whether resources of `tenant` exist for this caller."""
        return self.admin or tenant == self.tenant


# Work that the daemon starts by itself acts as its owner.
OWNER = Caller()
_caller: ContextVar[Caller] = ContextVar("caller", default=OWNER)


def caller() -> Caller:
    """The caller of the running handler; the daemon's owner outside of one."""
    return _caller.get()


def set_caller(who: Caller) -> None:
    """Note the caller for the rest of the running task."""
    _caller.set(who)
