"""Conversations: what is said, which tools there are, and what was called."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optiq_protos.v1 import generation_pb2


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; ``parameters`` is the JSON schema of its arguments, an object."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model asks for a function's result; answer with a ``Message`` of role ``tool`` and this ``id``."""

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; ``role`` is system, user, assistant or tool.

    An assistant's ``tool_calls`` are what it asked for; a tool's ``tool_call_id`` says which call it answers.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


def message_proto(message: Message) -> generation_pb2.ChatMessage:
    """The message on the wire."""
    calls = [
        generation_pb2.ToolCall(id=call.id, name=call.name, arguments_json=json.dumps(dict(call.arguments)))
        for call in message.tool_calls
    ]
    return generation_pb2.ChatMessage(
        role=message.role, content=message.content, tool_calls=calls, tool_call_id=message.tool_call_id
    )


def tool_proto(tool: Tool) -> generation_pb2.Tool:
    """The tool on the wire."""
    parameters = json.dumps(dict(tool.parameters)) if tool.parameters else ""
    return generation_pb2.Tool(name=tool.name, description=tool.description, parameters_json=parameters)


def tool_call(call: generation_pb2.ToolCall) -> ToolCall:
    """The call of a stream's message."""
    return ToolCall(call.id, call.name, json.loads(call.arguments_json))
