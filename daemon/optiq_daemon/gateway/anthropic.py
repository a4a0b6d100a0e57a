"""Anthropic's messages: their bodies, and answers in their shapes."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec

from optiq_daemon.errors import InvalidRequestError
from optiq_daemon.gateway.answers import data
from optiq_daemon.gateway.bodies import Count, TopK, refuse
from optiq_daemon.gateway.choices import Choice, Update
from optiq_daemon.gateway.names import adapter_of
from optiq_daemon.gateway.openai_bodies import TextPart, part_text
from optiq_daemon.gateway.problems import Problem
from optiq_protos.v1 import generation_pb2 as pb

_UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "tools": (([],), "tool calls are not supported"),
    "tool_choice": (({"type": "auto"}, {"type": "none"}), "tool calls are not supported"),
    "thinking": (({"type": "disabled"},), "is not supported"),
    "output_config": (({},), "is not supported"),
    "mcp_servers": (([],), "is not supported"),
}
_REASONS = {
    pb.FINISH_REASON_STOP: "end_turn",
    pb.FINISH_REASON_STOP_STRING: "stop_sequence",
    pb.FINISH_REASON_LENGTH: "max_tokens",
}


class Message(msgspec.Struct):
    """A turn."""

    role: str
    content: str | list[TextPart]


class Metadata(msgspec.Struct):
    """Of one user, requests go to the same target of a sticky route."""

    user_id: str | None = None


class MessagesBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/messages. `min_p`, `seed` and `adapter_scale` are ours; send them as `extra_body`."""

    model: str
    max_tokens: Count
    messages: list[Message]
    system: str | list[TextPart] | None = None
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: TopK | None = None
    min_p: float | None = None
    seed: int | None = None
    adapter_scale: float | None = None
    tools: list[Any] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    mcp_servers: list[Any] | None = None
    metadata: Metadata | None = None
    # These change no answer here.
    service_tier: Any = None
    cache_control: Any = None


def message_request(body: MessagesBody, *, tenant: str, base: str) -> pb.GenerateRequest:
    """The request of ours.

    Raises:
        InvalidRequestError: a field cannot be honoured; names it.
    """
    refuse(body, _UNSUPPORTED)
    if not body.model:
        raise InvalidRequestError.of("model", f"must not be empty; the bare base is {base!r}")
    request = pb.GenerateRequest(parent=f"tenants/{tenant}", adapter=adapter_of(body.model, base))
    request.max_tokens = body.max_tokens
    request.sticky_key = (body.metadata and body.metadata.user_id) or ""
    request.stop.extend(body.stop_sequences or [])
    if body.adapter_scale is not None:
        request.adapter_scale = body.adapter_scale
    for field in ("temperature", "top_p", "min_p"):
        if (value := getattr(body, field)) is not None:
            setattr(request.sampling, field, value)
    if body.top_k is not None:
        request.sampling.top_k = max(0, body.top_k)
    if body.seed is not None:
        request.sampling.seed = body.seed % 2**64
    request.messages.SetInParent()
    if body.system:
        request.messages.messages.add(role="system", content=_text(body.system, "system"))
    for index, message in enumerate(body.messages):
        if message.role not in ("user", "assistant"):
            raise InvalidRequestError.of(f"messages[{index}].role", "must be user or assistant")
        content = _text(message.content, f"messages[{index}].content")
        request.messages.messages.add(role=message.role, content=content)
    return request


class MessageShape:
    """`message`, whole or as events.

    Args:
        model: as the caller named it.
        stops: the caller's stop sequences.
    """

    def __init__(self, model: str, stops: list[str]) -> None:
        self._model = model
        self._stops = stops
        self._choice = Choice()

    def problem(self, problem: Problem) -> dict[str, Any]:
        """An error's body."""
        return problem.anthropic()

    def whole(self, choices: list[Choice]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        (choice,) = choices
        return {
            **self._message(),
            "content": [{"type": "text", "text": "".join(choice.text)}],
            **self._stopped(choice),
            "usage": _usage(choice),
        }

    def begin(self) -> bytes:
        """Nothing: the first event needs the size of the prompt."""
        return b""

    def take(self, update: Update) -> bytes:
        """The events of one response."""
        response = update[1]
        kind = response.WhichOneof("event")
        if kind == "chunk":
            if not response.chunk.text:
                return b""
            delta = {"type": "text_delta", "text": response.chunk.text}
            return _event("content_block_delta", index=0, delta=delta)
        self._choice.take(response)
        if kind == "started":
            message = {**self._message(), "content": [], "stop_reason": None, "stop_sequence": None}
            message["usage"] = _usage(self._choice)
            return _event("message_start", message=message) + _event(
                "content_block_start", index=0, content_block={"type": "text", "text": ""}
            )
        if kind == "finished":
            return _event("content_block_stop", index=0) + _event(
                "message_delta", delta=self._stopped(self._choice), usage=_usage(self._choice)
            )
        return b""

    def end(self) -> bytes:
        """The last event."""
        return _event("message_stop")

    def broken(self, problem: Problem) -> bytes:
        """An error event."""
        return data(problem.anthropic(), "error")

    def _message(self) -> dict[str, Any]:
        return {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
        }

    def _stopped(self, choice: Choice) -> dict[str, Any]:
        assert choice.finished is not None
        reason = _REASONS.get(choice.finished.reason, "end_turn")
        # The engine does not tell which of several it was.
        known = reason == "stop_sequence" and len(self._stops) == 1
        return {"stop_reason": reason, "stop_sequence": self._stops[0] if known else None}


def _usage(choice: Choice) -> dict[str, int]:
    assert choice.started is not None
    cached = choice.started.cached_tokens
    return {
        "input_tokens": choice.started.prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": choice.finished.usage.completion_tokens if choice.finished is not None else 0,
    }


def _event(kind: str, **fields: Any) -> bytes:
    return data({"type": kind, **fields}, kind)


def _text(content: str | list[TextPart], where: str) -> str:
    if isinstance(content, str):
        return content
    return "".join(part_text(part.type, part.text, f"{where}[{index}]") for index, part in enumerate(content))
