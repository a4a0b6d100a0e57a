# ruff: noqa: N818 - named for what happened, as in `except NotFound`
"""Errors of the client, drawn once.

::

    OptiqClientError            anything that went wrong with a call; .code .message .reason .domain .metadata
    ├── InvalidRequest          a field is wrong; .violations says which and what would be right
    ├── NotFound                no adapter, job or revision of that name
    ├── AlreadyExists           the name is taken
    ├── FailedPrecondition      right request, wrong state (engine cannot start, adapter quarantined, etag is old)
    ├── PermissionDenied        no token, or not this tenant's
    ├── ResourceExhausted       a quota or a queue is full; .retry_after
    ├── Unavailable             try again; .retry_after
    │   └── ConnectionFailed    nothing answers at the address: the daemon is not running, or it went away
    ├── DeadlineExceeded        `timeout=` passed
    ├── Cancelled               the call was cancelled, here or by the daemon
    └── ServerError             a bug or an unknown status on the daemon's side

``reason``, ``domain`` and ``metadata`` come from google.rpc.ErrorInfo, ``violations`` from BadRequest and QuotaFailure,
``retry_after`` (seconds) from RetryInfo. ``retryable`` says whether the same call may succeed later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Violation:
    """One wrong field (or one exceeded quota) and what would be right."""

    field: str
    description: str


class OptiqClientError(Exception):
    """Base class of every error that the client raises.

    Args:
        message: one sentence for a person.
        code: gRPC status name, for example ``NOT_FOUND``.
        reason: stable upper snake case, for example ``ADAPTER_QUARANTINED``; empty if the daemon gave none.
        domain: who defines ``reason``; ``optiq`` for ours.
        metadata: further fields of the reason.
        violations: wrong fields or exceeded quotas.
        retry_after: seconds to wait, where the daemon named them.
    """

    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        code: str = "UNKNOWN",
        reason: str = "",
        domain: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.domain = domain
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after = retry_after

    def __str__(self) -> str:
        lines = [self.message]
        lines += [f"  {v.field}: {v.description}" for v in self.violations if v.description not in self.message]
        return "\n".join(lines)


class InvalidRequest(OptiqClientError):
    """A field of the request is wrong; ``violations`` names it."""


class NotFound(OptiqClientError):
    """No resource of that name."""


class AlreadyExists(OptiqClientError):
    """The name is taken."""


class FailedPrecondition(OptiqClientError):
    """The request is right but the state is not."""


class PermissionDenied(OptiqClientError):
    """The caller may not do this."""


class ResourceExhausted(OptiqClientError):
    """A quota or a queue is full."""

    retryable = True


class Unavailable(OptiqClientError):
    """The daemon or its engine cannot answer now; the same call may succeed later."""

    retryable = True


class ConnectionFailed(Unavailable):
    """Nothing answers at the address."""


class DeadlineExceeded(OptiqClientError):
    """The call's ``timeout`` passed."""

    retryable = True


class Cancelled(OptiqClientError):
    """The call was cancelled."""


class ServerError(OptiqClientError):
    """The daemon failed in a way that it does not describe."""


BY_CODE: Mapping[str, type[OptiqClientError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "OUT_OF_RANGE": InvalidRequest,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "FAILED_PRECONDITION": FailedPrecondition,
    "ABORTED": FailedPrecondition,
    "PERMISSION_DENIED": PermissionDenied,
    "UNAUTHENTICATED": PermissionDenied,
    "RESOURCE_EXHAUSTED": ResourceExhausted,
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "CANCELLED": Cancelled,
}
"""gRPC status name to class; every other status is a ServerError."""
