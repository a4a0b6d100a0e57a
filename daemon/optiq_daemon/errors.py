"""Errors of the daemon, and the one map from exceptions to gRPC statuses.

::

    optiq_core.errors.OptiqError
    └── RequestError            anything that a caller is told
        ├── InvalidRequestError      INVALID_ARGUMENT     BadRequest
        ├── NotFoundError            NOT_FOUND            ResourceInfo
        ├── AlreadyExistsError       ALREADY_EXISTS       ResourceInfo
        ├── RefusedError             FAILED_PRECONDITION  ErrorInfo metadata
        ├── ConflictError            ABORTED              ResourceInfo
        ├── UnauthenticatedError     UNAUTHENTICATED      ErrorInfo
        ├── ForbiddenError           PERMISSION_DENIED    ErrorInfo
        ├── QueueFullError           RESOURCE_EXHAUSTED   QuotaFailure, RetryInfo
        │   └── QuotaError           a tenant's own limit
        ├── UnavailableError         UNAVAILABLE          RetryInfo
        └── OutOfRangeError          OUT_OF_RANGE         ErrorInfo metadata

Every status carries an ErrorInfo with domain ``optiq``. What is not in this tree becomes INTERNAL with an id that finds
the stack trace in the daemon's log; the wire never carries a trace.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from optiq_core.errors import AdapterError, DataError, OptiqError, TrainingError

DOMAIN = "optiq"
DETAILS_KEY = "grpc-status-details-bin"

log = logging.getLogger(__name__)


class RequestError(OptiqError):
    """Something to tell the caller.

    Args:
        message: one sentence; never prompt text, never a secret.
        reason: stable, upper snake case, for programs.
        metadata: further facts for programs.
    """

    code = code_pb2.UNKNOWN
    reason = "UNKNOWN"

    def __init__(self, message: str, *, reason: str = "", metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or type(self).reason
        self.metadata = dict(metadata or {})

    def details(self) -> Sequence[Message]:
        """google.rpc messages besides ErrorInfo."""
        return ()


class InvalidRequestError(RequestError):
    """The request is wrong whatever the daemon's state; names every wrong field."""

    code = code_pb2.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"

    def __init__(self, violations: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{field}: {description}" for field, description in violations))
        self.violations = tuple(violations)

    @classmethod
    def of(cls, field: str, description: str) -> InvalidRequestError:
        """One violation."""
        return cls([(field, description)])

    def details(self) -> Sequence[Message]:
        """BadRequest."""
        violation = error_details_pb2.BadRequest.FieldViolation
        return [
            error_details_pb2.BadRequest(
                field_violations=[violation(field=f, description=d) for f, d in self.violations]
            )
        ]


class _ResourceError(RequestError):
    def __init__(self, kind: str, name: str, message: str, **keywords: Any) -> None:
        super().__init__(message, **keywords)
        self.kind = kind
        self.name = name

    def details(self) -> Sequence[Message]:
        return [
            error_details_pb2.ResourceInfo(resource_type=self.kind, resource_name=self.name, description=self.message)
        ]


class NotFoundError(_ResourceError):
    """There is no such resource."""

    code = code_pb2.NOT_FOUND
    reason = "NOT_FOUND"


class AlreadyExistsError(_ResourceError):
    """There is one already."""

    code = code_pb2.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class ConflictError(_ResourceError):
    """The resource has changed since the caller read it."""

    code = code_pb2.ABORTED
    reason = "ETAG_MISMATCH"


class RefusedError(RequestError):
    """Not in this state; `reason` and `metadata` say what stands in the way."""

    code = code_pb2.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class UnauthenticatedError(RequestError):
    """No token, or none that is valid. The message never repeats what was sent."""

    code = code_pb2.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class ForbiddenError(RequestError):
    """The caller's role does not allow this method or this path."""

    code = code_pb2.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class OutOfRangeError(RequestError):
    """Beyond what is kept."""

    code = code_pb2.OUT_OF_RANGE
    reason = "OUT_OF_RANGE"


class UnavailableError(RequestError):
    """Try again in `retry_seconds`."""

    code = code_pb2.UNAVAILABLE
    reason = "UNAVAILABLE"

    def __init__(self, message: str, *, retry_seconds: float = 1.0, **keywords: Any) -> None:
        super().__init__(message, **keywords)
        self.retry_seconds = retry_seconds

    def details(self) -> Sequence[Message]:
        """RetryInfo."""
        return [_retry_info(self.retry_seconds)]


class QueueFullError(RequestError):
    """A bounded queue has no place."""

    code = code_pb2.RESOURCE_EXHAUSTED
    reason = "QUEUE_FULL"

    def __init__(self, subject: str, message: str, *, retry_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.subject = subject
        self.retry_seconds = retry_seconds

    def details(self) -> Sequence[Message]:
        """QuotaFailure and RetryInfo."""
        violation = error_details_pb2.QuotaFailure.Violation(subject=self.subject, description=self.message)
        return [error_details_pb2.QuotaFailure(violations=[violation]), _retry_info(self.retry_seconds)]


class QuotaError(QueueFullError):
    """A limit that was set for the tenant is reached."""

    reason = "QUOTA_EXCEEDED"


def adapter_metadata(error: AdapterError) -> dict[str, str]:
    """The fields of an adapter's refusal that are set, for ErrorInfo and events."""
    fields = {
        "message": error.message,
        "file": error.file,
        "tensor": error.tensor,
        "expected": error.expected,
        "found": error.found,
    }
    return {key: value for key, value in fields.items() if value}


def from_engine(error: grpc.aio.AioRpcError) -> RequestError:
    """Translate a status of the engine process into an error of ours; its reason and details are kept."""
    packed = next((value for key, value in error.trailing_metadata() or () if key == DETAILS_KEY), b"")
    status = status_pb2.Status.FromString(packed)
    # What gRPC itself found has no details.
    status.code, status.message = error.code().value[0], error.details() or ""
    return from_engine_status(status)


def engine_lost() -> UnavailableError:
    """What a request is told whose engine process ended."""
    return UnavailableError("the engine process ended; it is being restarted", reason="ENGINE_LOST")


def from_engine_status(status: status_pb2.Status) -> RequestError:
    """As :func:`from_engine`, of a status that came by itself."""
    code, text = status.code, status.message
    info, violations = _engine_details(status)
    facts: dict[str, Any] = {"reason": info.reason, "metadata": info.metadata}
    if code == code_pb2.INVALID_ARGUMENT:
        return InvalidRequestError(violations or [("request", text)])
    if code == code_pb2.FAILED_PRECONDITION:
        return RefusedError(text, **facts)
    if code == code_pb2.RESOURCE_EXHAUSTED:
        return QueueFullError("engine", text)
    if code in (code_pb2.UNAVAILABLE, code_pb2.CANCELLED, code_pb2.DEADLINE_EXCEEDED):
        if info.reason:
            return UnavailableError(text, **facts)
        slow = code == code_pb2.DEADLINE_EXCEEDED
        return UnavailableError("the engine did not answer in time", reason="ENGINE_SLOW") if slow else engine_lost()
    name = code_pb2.Code.Name(code)
    error_id = secrets.token_hex(6)
    log.error("unexpected error id=%s in the engine: %s %s", error_id, name, text)
    return RequestError(f"the engine failed with {name}; the log has it as {error_id}", reason="ENGINE_ERROR")


def status_of(error: BaseException, method: str = "") -> status_pb2.Status:
    """The status that a caller of `method` sees for `error`."""
    if isinstance(error, RequestError):
        code, message, reason, metadata = error.code, error.message, error.reason, error.metadata
        details = error.details()
        if code == code_pb2.UNKNOWN:
            code = code_pb2.INTERNAL
    elif isinstance(error, AdapterError):
        code, message, reason = code_pb2.FAILED_PRECONDITION, str(error), error.code
        metadata, details = adapter_metadata(error), ()
    elif isinstance(error, DataError | TrainingError):
        code, message, reason, metadata = code_pb2.INVALID_ARGUMENT, str(error), "INVALID_ARGUMENT", {}
        details = InvalidRequestError.of("config", str(error)).details()
    elif isinstance(error, grpc.aio.AioRpcError):
        return status_of(from_engine(error), method)
    else:
        error_id = log_unexpected(method, error)
        code, reason, metadata, details = code_pb2.INTERNAL, "INTERNAL", {"error_id": error_id}, ()
        message = f"an unexpected error, logged by the daemon as {error_id}"
    status = status_pb2.Status(code=code, message=message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata))
    for detail in details:
        status.details.add().Pack(detail)
    return status


def log_unexpected(where: str, error: BaseException) -> str:
    """Log `error` with its stack and return the id that it is logged under."""
    error_id = secrets.token_hex(6)
    log.error("unexpected error id=%s in %s", error_id, where or "the daemon", exc_info=error)
    return error_id


def _engine_details(status: status_pb2.Status) -> tuple[error_details_pb2.ErrorInfo, list[tuple[str, str]]]:
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    for packed in status.details:
        _ = packed.Unpack(info) or packed.Unpack(bad)
    return info, [(v.field, v.description) for v in bad.field_violations]


def _retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    delay = Duration()
    delay.FromMilliseconds(int(seconds * 1000))
    return error_details_pb2.RetryInfo(retry_delay=delay)
