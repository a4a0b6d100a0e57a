"""What a request that holds its answer to a form, or offers tools, must look like."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import msgspec

from optiq_protos.v1 import generation_pb2 as pb

MAX_TOOLS = 128
MAX_SCHEMA_CHARACTERS = 65_536
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
NAME_RULE = "1 to 64 letters, digits, _ and -"

Violation = tuple[str, str]


def form_violations(request: pb.GenerateRequest) -> list[Violation]:
    """Every field about schemas and tools that is wrong, with a sentence that says what would be right."""
    wrong = list(_schema_violations("json_schema", request.json_schema))
    wrong += _tools_violations(request.tools)
    required = request.tool_choice == pb.TOOL_CHOICE_REQUIRED
    if request.tool_choice not in pb.ToolChoice.values():
        wrong.append(("tool_choice", f"{request.tool_choice} is none of the choices"))
    if required and not request.tools:
        wrong.append(("tool_choice", "REQUIRED needs tools"))
    if request.tool_name and not required:
        wrong.append(("tool_name", "needs tool_choice REQUIRED"))
    elif request.tool_name and request.tool_name not in [tool.name for tool in request.tools]:
        wrong.append(("tool_name", f"{request.tool_name[:64]!r} is none of the tools"))
    if request.json_schema and request.tools and request.tool_choice != pb.TOOL_CHOICE_NONE:
        wrong.append(("json_schema", "an answer that keeps to a schema calls no tools; set tool_choice to NONE"))
    if request.tools and request.WhichOneof("input") in ("raw_text", "token_ids"):
        wrong.append(("tools", "are shown by the chat template; send a prompt or messages"))
    for index, message in enumerate(request.messages.messages):
        wrong += _message_violations(message, f"messages.messages[{index}]")
    return wrong


def _tools_violations(tools: Sequence[pb.Tool]) -> Iterator[Violation]:
    if len(tools) > MAX_TOOLS:
        yield "tools", f"at most {MAX_TOOLS}, found {len(tools)}"
        return
    names = [tool.name for tool in tools]
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        if not NAME.fullmatch(tool.name):
            yield f"{where}.name", f"must be {NAME_RULE}, is {tool.name[:80]!r}"
        elif tool.name in names[:index]:
            yield f"{where}.name", f"{tool.name!r} is there twice"
        yield from _schema_violations(f"{where}.parameters_json", tool.parameters_json)


def _message_violations(message: pb.ChatMessage, where: str) -> Iterator[Violation]:
    if message.tool_calls and message.role != "assistant":
        yield f"{where}.tool_calls", "only an assistant calls tools"
    if message.tool_call_id and message.role != "tool":
        yield f"{where}.tool_call_id", "only a message of role tool answers a call"
    for index, call in enumerate(message.tool_calls):
        if not NAME.fullmatch(call.name):
            yield f"{where}.tool_calls[{index}].name", f"must be {NAME_RULE}, is {call.name[:80]!r}"
        if not _is_object(call.arguments_json):
            yield f"{where}.tool_calls[{index}].arguments_json", "must be a JSON object"


def _schema_violations(where: str, schema: str) -> Iterator[Violation]:
    if len(schema) > MAX_SCHEMA_CHARACTERS:
        yield where, f"at most {MAX_SCHEMA_CHARACTERS} characters, found {len(schema)}"
    elif schema and not _is_object(schema):
        yield where, "must be a JSON schema: an object"


def _is_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (msgspec.DecodeError, RecursionError):
        return False
