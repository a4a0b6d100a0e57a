"""From a failed gRPC call to one of our errors. Shared by the sync and the async client."""

from __future__ import annotations

from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from optiq_client.errors import (
    BY_CODE,
    ConnectionFailed,
    OptiqClientError,
    ServerError,
    Violation,
)


def to_error(error: grpc.RpcError, *, address: str) -> OptiqClientError:
    """The error to raise for ``error`` (sync or aio), with its google.rpc details unpacked."""
    code: str = error.code().name
    message: str = error.details() or code
    details = _details(error)
    if code == "UNAVAILABLE" and not details and not _is_from_server(error):
        return ConnectionFailed(connection_message(address, message), code=code)

    info = details.get("ErrorInfo")
    retry = details.get("RetryInfo")
    violations: list[Violation] = []
    if bad := details.get("BadRequest"):
        violations += [Violation(v.field, v.description) for v in bad.field_violations]
    if quota := details.get("QuotaFailure"):
        violations += [Violation(v.subject, v.description) for v in quota.violations]
    return BY_CODE.get(code, ServerError)(
        message,
        code=code,
        reason=info.reason if info else "",
        domain=info.domain if info else "",
        metadata=dict(info.metadata) if info else None,
        violations=violations,
        retry_after=retry.retry_delay.ToTimedelta().total_seconds() if retry else None,
    )


def connection_message(address: str, detail: str) -> str:
    """What to tell a person when nothing answers at ``address``."""
    if "failed to connect" in detail.lower() or not detail:
        return f"no Optiq daemon answers at {address}; start it with: optiq serve"
    return f"lost the connection to the Optiq daemon at {address} ({detail}); is `optiq serve` still running?"


def _details(error: grpc.RpcError) -> dict[str, Any]:
    """The google.rpc details by type name; empty if the status carries none."""
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # details that contradict the status: trust the status
        return {}
    found: dict[str, Any] = {}
    for packed in status.details if status is not None else ():
        name = packed.TypeName().removeprefix("google.rpc.")
        kind = getattr(error_details_pb2, name, None)
        if kind is not None:
            message = kind()
            if packed.Unpack(message):
                found[name] = message
    return found


def _is_from_server(error: grpc.RpcError) -> bool:
    """True if a server ended the call. A transport failure arrives without initial metadata and with core's texts."""
    text = (error.details() or "").lower()
    transport = ("failed to connect", "connection", "socket closed", "goaway", "recvmsg", "endpoint", "broken pipe")
    return not any(word in text for word in transport)
