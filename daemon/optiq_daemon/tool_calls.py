"""Tools in the engine process: shown by the base's chat template, enforced where asked, and read from the answer."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from optiq_daemon.errors import InvalidRequestError
from optiq_protos.internal.v1 import engine_pb2
from optiq_protos.v1 import generation_pb2 as pb

if TYPE_CHECKING:
    from optiq_core.engine.constraint import Constraint, ConstraintCompiler

# The parser of mlx-lm whose calls are JSON between marks, so that a grammar can enforce them.
_JSON_PARSER = "mlx_lm.tool_parsers.json_tools"


def template_tools(tools: Sequence[pb.Tool]) -> list[dict[str, Any]]:
    """Tools in the form that chat templates and mlx-lm's parsers take."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": json.loads(tool.parameters_json) if tool.parameters_json else {"type": "object"},
            },
        }
        for tool in tools
    ]


def template_message(message: pb.ChatMessage) -> dict[str, Any]:
    """A message in the form that chat templates take."""
    made: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        made["tool_calls"] = [
            {
                "type": "function",
                "id": call.id,
                "function": {"name": call.name, "arguments": json.loads(call.arguments_json)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        made["tool_call_id"] = message.tool_call_id
    return made


def check_template(request: engine_pb2.GenerateRequest, tokenizer: Any) -> None:
    """Refuse tools that the base's chat template would not show.

    Raises:
        InvalidRequestError: names the field.
    """
    in_history = any(m.tool_calls or m.tool_call_id for m in request.messages.messages)
    if (request.tools or in_history) and not tokenizer.has_tool_calling:
        field = "tools" if request.tools else "messages"
        raise InvalidRequestError.of(field, "the base's chat template knows no tools; serve a base whose template does")


def constraint_of(
    request: engine_pb2.GenerateRequest, tokenizer: Any, compiler: ConstraintCompiler
) -> Constraint | None:
    """What the answer is held to. May take a second when a base is asked for the first time.

    Raises:
        InvalidRequestError: names the field that cannot be enforced.
    """
    from optiq_core.engine.constraint import ConstraintError

    required = request.tool_choice == pb.TOOL_CHOICE_REQUIRED
    if required and tokenizer.tool_parser.__module__ != _JSON_PARSER:
        raise InvalidRequestError.of(
            "tool_choice", "the base writes calls in a form that is not enforced; let it choose"
        )
    try:
        if required:
            tools = [tool for tool in request.tools if request.tool_name in ("", tool.name)]
            return compiler.tool_call(template_tools(tools))
        return compiler.schema(request.json_schema) if request.json_schema else None
    except ConstraintError as error:
        raise InvalidRequestError.of("tools" if required else "json_schema", str(error)) from None


def extra_stops(request: engine_pb2.GenerateRequest, tokenizer: Any) -> list[str]:
    """What ends an answer after its first call, if that was asked for; some bases end every call with their turn."""
    return [tokenizer.tool_call_end] if request.one_tool_call and request.tools and tokenizer.tool_call_end else []


class ToolCallReader:
    """Takes calls out of an answer's text.

    Args:
        tokenizer: mlx-lm's wrapper; knows the marks of a call and how to read it.
        tools: those of the request.
    """

    def __init__(self, tokenizer: Any, tools: Sequence[pb.Tool]) -> None:
        self._begin, self._end = tokenizer.tool_call_start, tokenizer.tool_call_end
        self._parse = tokenizer.tool_parser
        self._tools = template_tools(tools)
        self._names = {tool.name for tool in tools}
        self._held = ""
        self._inside = False
        self.found = 0

    def push(self, text: str, *, last: bool = False) -> tuple[str, list[pb.ToolCall]]:
        """Take more text.

        Args:
            last: nothing follows.

        Returns:
            Text that is not part of a call, and the calls that are complete. What cannot be read stays text.
        """
        self._held += text
        shown, calls = "", []
        for piece, is_call in self._pieces(last=last):
            read = self._read(piece) if is_call else []
            calls += read
            shown += "" if read else piece
        self.found += len(calls)
        return shown, calls

    def _pieces(self, *, last: bool) -> Iterator[tuple[str, bool]]:
        """Whole parts of what is held: text, or a call with its marks."""
        while self._held:
            if not self._inside:
                at = self._held.find(self._begin)
                if at < 0:
                    keep = 0 if last else _overlap(self._held, self._begin)
                    yield self._held[: len(self._held) - keep], False
                    self._held = self._held[len(self._held) - keep :]
                    return
                yield self._held[:at], False
                self._held, self._inside = self._held[at:], True
            at = self._held.find(self._end, len(self._begin)) if self._end else -1
            if at < 0 and not last:
                return
            stop = len(self._held) if at < 0 else at + len(self._end)
            yield self._held[:stop], True
            self._held, self._inside = self._held[stop:], False

    def _read(self, piece: str) -> list[pb.ToolCall]:
        inner = piece.removeprefix(self._begin)
        inner = inner.removesuffix(self._end) if self._end else inner
        try:
            read = self._parse(inner, self._tools)
            made = [_call(one) for one in (read if isinstance(read, list) else [read])]
        except Exception:  # every parser has errors of its own, and a model may write anything
            return []
        return made if all(call.name in self._names for call in made) else []


def _call(read: dict[str, Any]) -> pb.ToolCall:
    arguments = read.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(arguments, dict):
        raise TypeError("arguments are no object")
    return pb.ToolCall(
        id=read.get("id") or f"call_{secrets.token_hex(12)}",
        name=read["name"],
        arguments_json=json.dumps(arguments, ensure_ascii=False),
    )


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of a text that begins a mark."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)


def with_calls(response: engine_pb2.GenerateResponse, reader: ToolCallReader) -> Iterator[engine_pb2.GenerateResponse]:
    """A response with its calls taken out of its text; text that was held back comes before the end."""
    kind = response.WhichOneof("event")
    if kind == "chunk":
        text, calls = reader.push(response.chunk.text)
        response.chunk.text = text
        response.chunk.tool_calls.extend(calls)
    elif kind == "finished":
        text, calls = reader.push("", last=True)
        if text or calls:
            yield engine_pb2.GenerateResponse(chunk=pb.Chunk(text=text, tool_calls=calls))
        ended = response.finished.reason in (pb.FINISH_REASON_STOP, pb.FINISH_REASON_STOP_STRING)
        if reader.found and ended:
            response.finished.reason = pb.FINISH_REASON_TOOL_CALLS
    yield response
