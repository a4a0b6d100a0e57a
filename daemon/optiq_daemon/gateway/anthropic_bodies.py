"""Anthropic's bodies, and the requests of ours that they become."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from optiq_daemon.errors import InvalidRequestError
from optiq_daemon.gateway.bodies import Count, TopK, refuse
from optiq_daemon.gateway.names import adapter_of
from optiq_daemon.gateway.openai_bodies import TextPart, part_text
from optiq_daemon.gateway.openai_tools import add_tool
from optiq_protos.v1 import generation_pb2 as pb

_UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "thinking": (({"type": "disabled"},), "is not supported"),
    "mcp_servers": (([],), "is not supported"),
}


class Block(msgspec.Struct):
    """A part of a turn: text, a call that the assistant made, or what it returned."""

    type: str
    text: str | None = None
    id: str = ""
    name: str = ""
    input: dict[str, Any] = {}
    tool_use_id: str = ""
    content: str | list[TextPart] = ""
    is_error: bool = False


class Message(msgspec.Struct):
    """A turn."""

    role: str
    content: str | list[Block]


class Metadata(msgspec.Struct):
    """Of one user, requests go to the same target of a sticky route."""

    user_id: str | None = None


class ToolSpec(msgspec.Struct):
    """A tool that the caller runs; those that Anthropic runs cannot be served."""

    name: str
    input_schema: dict[str, Any] | None = None
    description: str | None = None
    type: str = "custom"


class ToolChoice(msgspec.Struct, forbid_unknown_fields=True):
    """Whether a tool is called, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: str = ""
    disable_parallel_tool_use: bool = False


class OutputFormat(msgspec.Struct):
    """JSON of a schema."""

    type: Literal["json_schema"]
    # A field's name cannot be `schema`: msgspec keeps it, the attribute is another.
    content: dict[str, Any] = msgspec.field(name="schema")


class OutputConfig(msgspec.Struct, forbid_unknown_fields=True):
    """What the answer is held to."""

    format: OutputFormat | None = None


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
    tools: list[ToolSpec] | None = None
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None
    thinking: dict[str, Any] | None = None
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
    if body.output_config and body.output_config.format:
        request.json_schema = msgspec.json.encode(body.output_config.format.content).decode()
    _add_tools(request, body)
    request.messages.SetInParent()
    if body.system:
        request.messages.messages.add(role="system", content=_text(body.system, "system"))
    for index, message in enumerate(body.messages):
        if message.role not in ("user", "assistant"):
            raise InvalidRequestError.of(f"messages[{index}].role", "must be user or assistant")
        request.messages.messages.extend(_turn(message, f"messages[{index}].content"))
    return request


def _add_tools(request: pb.GenerateRequest, body: MessagesBody) -> None:
    for index, tool in enumerate(body.tools or []):
        if tool.type != "custom":
            what = f"only tools of yours can be called, found {tool.type[:40]!r}"
            raise InvalidRequestError.of(f"tools[{index}].type", what)
        add_tool(request, tool.name, tool.description, tool.input_schema)
    choice = body.tool_choice or ToolChoice("auto")
    if choice.type == "none":
        request.tool_choice = pb.TOOL_CHOICE_NONE
    elif choice.type in ("any", "tool"):
        request.tool_choice = pb.TOOL_CHOICE_REQUIRED
        request.tool_name = choice.name
    request.one_tool_call = bool(body.tools) and choice.disable_parallel_tool_use


def _turn(message: Message, where: str) -> list[pb.ChatMessage]:
    """A turn as messages: results of calls are messages of their own, before what the user says."""
    if isinstance(message.content, str):
        return [pb.ChatMessage(role=message.role, content=message.content)]
    said = pb.ChatMessage(role=message.role)
    results: list[pb.ChatMessage] = []
    for index, block in enumerate(message.content):
        at = f"{where}[{index}]"
        if block.type == "tool_use" and message.role == "assistant":
            arguments = msgspec.json.encode(block.input).decode()
            said.tool_calls.add(id=block.id, name=block.name, arguments_json=arguments)
        elif block.type == "tool_result" and message.role == "user":
            text = _text(block.content, f"{at}.content")
            results.append(pb.ChatMessage(role="tool", content=text, tool_call_id=block.tool_use_id))
        else:
            said.content += part_text(block.type, block.text, at)
    return [*results, said] if said.content or said.tool_calls or not results else results


def _text(content: str | list[TextPart], where: str) -> str:
    if isinstance(content, str):
        return content
    return "".join(part_text(part.type, part.text, f"{where}[{index}]") for index, part in enumerate(content))
