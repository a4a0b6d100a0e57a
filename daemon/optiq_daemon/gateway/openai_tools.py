"""Tools and response formats in OpenAI's bodies and answers."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from optiq_daemon.errors import InvalidRequestError
from optiq_protos.v1 import generation_pb2 as pb


class Function(msgspec.Struct):
    """A function that may be called. `strict` changes nothing: arguments are enforced where a call is required."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolSpec(msgspec.Struct):
    """A tool; only functions can be served."""

    type: str
    function: Function | None = None


class CalledFunction(msgspec.Struct):
    """What an assistant called, arguments as JSON."""

    name: str
    arguments: str = "{}"


class CalledTool(msgspec.Struct):
    """A call in a client's history."""

    id: str
    function: CalledFunction
    type: str = "function"


class ChosenFunction(msgspec.Struct):
    """The name of a function."""

    name: str


class ChosenTool(msgspec.Struct):
    """The tool that must be called."""

    type: Literal["function"]
    function: ChosenFunction


class SchemaFormat(msgspec.Struct):
    """A schema with a name. It is always enforced, so `strict` changes nothing."""

    name: str
    # A field's name cannot be `schema`: msgspec keeps it, the attribute is another.
    content: dict[str, Any] | None = msgspec.field(default=None, name="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    """Text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None


def add_tools(
    request: pb.GenerateRequest,
    tools: list[ToolSpec],
    choice: Literal["none", "auto", "required"] | ChosenTool | None,
    *,
    parallel: bool,
) -> None:
    """Put tools into a request.

    Raises:
        InvalidRequestError: a tool is no function.
    """
    for index, tool in enumerate(tools):
        if tool.type != "function" or tool.function is None:
            raise InvalidRequestError.of(f"tools[{index}].type", f"only functions can be called, found {tool.type!r}")
        add_tool(request, tool.function.name, tool.function.description, tool.function.parameters)
    if choice == "none":
        request.tool_choice = pb.TOOL_CHOICE_NONE
    elif choice == "required" or isinstance(choice, ChosenTool):
        request.tool_choice = pb.TOOL_CHOICE_REQUIRED
        request.tool_name = choice.function.name if isinstance(choice, ChosenTool) else ""
    request.one_tool_call = bool(tools) and not parallel


def add_tool(request: pb.GenerateRequest, name: str, description: str | None, schema: dict[str, Any] | None) -> None:
    """Put one tool into a request."""
    parameters = msgspec.json.encode(schema).decode() if schema else ""
    request.tools.add(name=name, description=description or "", parameters_json=parameters)


def schema_of(wanted: ResponseFormat | None) -> str:
    """The JSON schema that an answer is held to; empty for text.

    Raises:
        InvalidRequestError: the schema is missing.
    """
    if wanted is None or wanted.type == "text":
        return ""
    if wanted.type == "json_object":
        return '{"type": "object"}'
    if wanted.json_schema is None or wanted.json_schema.content is None:
        raise InvalidRequestError.of("response_format.json_schema.schema", "is missing")
    return msgspec.json.encode(wanted.json_schema.content).decode()


def called(calls: list[pb.ToolCall], *, first: int | None = None) -> list[dict[str, Any]]:
    """Calls in an answer.

    Args:
        first: index of the first in its stream; None in a whole answer.
    """
    made: list[dict[str, Any]] = []
    for offset, call in enumerate(calls):
        function = {"name": call.name, "arguments": call.arguments_json}
        index = {} if first is None else {"index": first + offset}
        made.append({**index, "id": call.id, "type": "function", "function": function})
    return made
