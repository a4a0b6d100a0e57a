"""Answers in Anthropic's shape, streamed and whole."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec

from optiq_daemon.gateway.answers import data
from optiq_daemon.gateway.choices import Choice, Update
from optiq_daemon.gateway.problems import Problem
from optiq_protos.v1 import generation_pb2 as pb

_REASONS = {
    pb.FINISH_REASON_STOP: "end_turn",
    pb.FINISH_REASON_STOP_STRING: "stop_sequence",
    pb.FINISH_REASON_LENGTH: "max_tokens",
    pb.FINISH_REASON_TOOL_CALLS: "tool_use",
}


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
        # Blocks that were begun, and whether the last one is text that may go on.
        self._blocks = 0
        self._open = False

    def problem(self, problem: Problem) -> dict[str, Any]:
        """An error's body."""
        return problem.anthropic()

    def whole(self, choices: list[Choice]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        (choice,) = choices
        return {
            **self._message(),
            "content": _content("".join(choice.text), choice.calls),
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
            return self._said(response.chunk.text) + b"".join(map(self._called, response.chunk.tool_calls))
        self._choice.take(response)
        if kind == "started":
            message = {**self._message(), "content": [], "stop_reason": None, "stop_sequence": None}
            message["usage"] = _usage(self._choice)
            return _event("message_start", message=message)
        if kind == "finished":
            # A message has a block at least.
            empty = b"" if self._blocks else self._begun({"type": "text", "text": ""})
            self._open = self._open or bool(empty)
            return (
                empty
                + self._closed()
                + _event("message_delta", delta=self._stopped(self._choice), usage=_usage(self._choice))
            )
        return b""

    def end(self) -> bytes:
        """The last event."""
        return _event("message_stop")

    def broken(self, problem: Problem) -> bytes:
        """An error event."""
        return data(problem.anthropic(), "error")

    def _said(self, text: str) -> bytes:
        if not text:
            return b""
        begun = b"" if self._open else self._begun({"type": "text", "text": ""})
        self._open = True
        delta = {"type": "text_delta", "text": text}
        return begun + _event("content_block_delta", index=self._blocks - 1, delta=delta)

    def _called(self, call: pb.ToolCall) -> bytes:
        closed = self._closed()
        begun = self._begun({"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
        delta = {"type": "input_json_delta", "partial_json": call.arguments_json}
        told = _event("content_block_delta", index=self._blocks - 1, delta=delta)
        return closed + begun + told + _event("content_block_stop", index=self._blocks - 1)

    def _begun(self, block: dict[str, Any]) -> bytes:
        self._blocks += 1
        return _event("content_block_start", index=self._blocks - 1, content_block=block)

    def _closed(self) -> bytes:
        """The end of a block of text, if one is open."""
        was_open, self._open = self._open, False
        return _event("content_block_stop", index=self._blocks - 1) if was_open else b""

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


def _content(text: str, calls: list[pb.ToolCall]) -> list[dict[str, Any]]:
    """Blocks of a whole answer; one at least."""
    blocks: list[dict[str, Any]] = [{"type": "text", "text": text}] if text or not calls else []
    for call in calls:
        arguments = msgspec.json.decode(call.arguments_json)
        blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": arguments})
    return blocks
