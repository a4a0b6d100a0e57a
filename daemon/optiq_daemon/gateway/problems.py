"""Errors over HTTP: one status for each gRPC code, and the bodies that OpenAI's and Anthropic's clients read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.rpc import code_pb2, error_details_pb2

from optiq_daemon.errors import RequestError, status_of

# OpenAI's and Anthropic's clients try 408, 409, 429 and 5xx again by themselves, so a state that waiting does not mend
# must be none of these.
_STATUS = {
    code_pb2.INVALID_ARGUMENT: 400,
    code_pb2.OUT_OF_RANGE: 400,
    code_pb2.UNAUTHENTICATED: 401,
    code_pb2.PERMISSION_DENIED: 403,
    code_pb2.NOT_FOUND: 404,
    code_pb2.ALREADY_EXISTS: 422,
    code_pb2.FAILED_PRECONDITION: 422,
    code_pb2.ABORTED: 409,
    code_pb2.RESOURCE_EXHAUSTED: 429,
    code_pb2.UNAVAILABLE: 503,
    code_pb2.DEADLINE_EXCEEDED: 504,
}

_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}

# The names that our protos give to what HTTP callers call otherwise.
_FIELDS = {
    "adapter": "model",
    "raw_text": "prompt",
    "token_ids": "prompt",
    "token_ids.ids": "prompt",
    "messages.messages": "messages",
    "sticky_key": "user",
    "json_schema": "response_format",
    "tool_name": "tool_choice",
}
_ANTHROPIC_FIELDS = {"json_schema": "output_config", "sticky_key": "metadata.user_id"}


@dataclass(frozen=True)
class Problem:
    """What a caller is told.

    Attributes:
        status: HTTP status.
        reason: stable, upper snake case, as on gRPC.
        field: the first field that is wrong, empty if none is.
        retry_seconds: when to try again, None if trying again does not help.
    """

    status: int
    message: str
    reason: str
    field: str = ""
    retry_seconds: float | None = None

    def openai(self) -> dict[str, Any]:
        """The body in OpenAI's shape."""
        kind = _OPENAI_TYPES.get(self.status) or ("server_error" if self.status >= 500 else "invalid_request_error")
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.field or None,
                "code": "model_not_found" if self.status == 404 and self.field == "model" else self.reason.lower(),
            }
        }

    def anthropic(self) -> dict[str, Any]:
        """The body in Anthropic's shape."""
        kind = _ANTHROPIC_TYPES.get(self.status) or ("api_error" if self.status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}}

    @property
    def headers(self) -> dict[str, str]:
        """Retry-After, in whole seconds, where trying again helps."""
        return {} if self.retry_seconds is None else {"retry-after": str(max(1, round(self.retry_seconds)))}


class BodyTooLargeError(RequestError):
    """The body has more bytes than a request may have."""

    code = code_pb2.INVALID_ARGUMENT
    reason = "BODY_TOO_LARGE"


def problem_of(error: Exception, path: str) -> Problem:
    """What to tell the caller of `path`; an unexpected error is logged and gets an id."""
    status = status_of(error, path)
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    resource, retry = error_details_pb2.ResourceInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        _ = detail.Unpack(info) or detail.Unpack(bad) or detail.Unpack(resource) or detail.Unpack(retry)
    names = _FIELDS | (_ANTHROPIC_FIELDS if path == "/v1/messages" else {})
    field = _named(bad.field_violations[0].field, names) if bad.field_violations else ""
    message = "; ".join(f"{_named(v.field, names)}: {v.description}" for v in bad.field_violations) or status.message
    if not field and resource.resource_type.startswith("adapter"):
        field = "model"
    return Problem(
        status=413 if isinstance(error, BodyTooLargeError) else _STATUS.get(status.code, 500),
        message=message,
        reason=info.reason,
        field=field,
        retry_seconds=retry.retry_delay.ToMilliseconds() / 1000 if retry.HasField("retry_delay") else None,
    )


def _named(field: str, names: Mapping[str, str]) -> str:
    """The caller's name of a field of our protos."""
    if field.startswith("messages.messages["):
        return field.removeprefix("messages.")
    return names.get(field, field.removeprefix("sampling."))
