"""Bodies of OpenAI's chat and text completions, and the requests of ours that they become."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from optiq_daemon.errors import InvalidRequestError
from optiq_daemon.gateway.bodies import MAX_CHOICES, Count, TopK, refuse
from optiq_daemon.gateway.names import adapter_of
from optiq_daemon.gateway.openai_tools import CalledTool, ChosenTool, ResponseFormat, ToolSpec, add_tools, schema_of
from optiq_daemon.request_checks import MAX_TOP_LOGPROBS
from optiq_protos.v1 import generation_pb2 as pb

_OFF: tuple[Any, ...] = (False, 0, "", [], {})
_NO_PENALTIES = "repetition penalties are not supported"
_OLD_CALLS = "is the old form of tools, which are supported"
_UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "frequency_penalty": (_OFF, _NO_PENALTIES),
    "presence_penalty": (_OFF, _NO_PENALTIES),
    "logit_bias": (_OFF, "is not supported"),
}
_CHAT_UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    **_UNSUPPORTED,
    "functions": (_OFF, _OLD_CALLS),
    "function_call": (("none", "auto"), _OLD_CALLS),
    "modalities": ((["text"],), "only text is supported"),
    "audio": (_OFF, "only text is supported"),
    "prediction": (_OFF, "is not supported"),
    "web_search_options": ((), "is not supported"),
}
_TEXT_UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    **_UNSUPPORTED,
    "echo": (_OFF, "is not supported"),
    "suffix": (_OFF, "is not supported"),
}


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What a stream tells besides its text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Sampled(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What both endpoints take. `top_k`, `min_p`, `adapter_scale` and `adapters` are ours; send them as `extra_body`.

    `adapters` is a blend: adapters to weights, on the base as the model.
    """

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: TopK | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHOICES)] | None = None
    adapter_scale: float | None = None
    adapters: dict[str, float] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    # Requests of one user, or with one key, go to the same target of a sticky route.
    user: str | None = None
    prompt_cache_key: str | None = None

    @property
    def usage_wanted(self) -> bool:
        """Whether the last chunk of a stream tells the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class TextPart(msgspec.Struct):
    """A part of a message; only text can be served."""

    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct):
    """A turn. Fields such as `refusal` come back in a client's history and carry nothing."""

    role: str
    content: str | list[TextPart] | None = None
    tool_calls: list[CalledTool] | None = None
    tool_call_id: str | None = None
    function_call: Any = None


class ChatBody(Sampled, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = None
    function_call: Any = None
    response_format: ResponseFormat | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    # These change no answer here.
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_retention: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None


class TextBody(Sampled, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    best_of: int | None = None
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool | None = None
    suffix: str | None = None


def chat_requests(body: ChatBody, *, tenant: str, base: str) -> list[pb.GenerateRequest]:
    """One request for each choice.

    Raises:
        InvalidRequestError: a field cannot be honoured; names it.
    """
    refuse(body, _CHAT_UNSUPPORTED)
    if body.max_tokens and body.max_completion_tokens and body.max_tokens != body.max_completion_tokens:
        raise InvalidRequestError.of("max_tokens", "is another number than max_completion_tokens; give one of them")
    request = _sampled(body, tenant, base)
    request.max_tokens = body.max_completion_tokens or body.max_tokens or 0
    if body.logprobs:
        request.top_logprobs = body.top_logprobs or 0
    elif body.top_logprobs:
        raise InvalidRequestError.of("top_logprobs", "needs logprobs to be true")
    request.json_schema = schema_of(body.response_format)
    add_tools(request, body.tools or [], body.tool_choice, parallel=body.parallel_tool_calls is not False)
    request.messages.SetInParent()
    for index, message in enumerate(body.messages):
        request.messages.messages.append(_message(message, f"messages[{index}]"))
    return _choices(request, body)


def text_requests(body: TextBody, *, tenant: str, base: str) -> list[pb.GenerateRequest]:
    """One request for each choice: `n` of the first prompt, then `n` of the next.

    Raises:
        InvalidRequestError: a field cannot be honoured; names it.
    """
    refuse(body, _TEXT_UNSUPPORTED)
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise InvalidRequestError.of("best_of", f"must equal n ({body.n or 1}), is {body.best_of}")
    requests: list[pb.GenerateRequest] = []
    for prompt in _prompts(body.prompt):
        request = _sampled(body, tenant, base)
        request.max_tokens = body.max_tokens or 0
        if body.logprobs is not None:
            request.top_logprobs = body.logprobs
        if isinstance(prompt, str):
            request.raw_text = prompt
        else:
            request.token_ids.ids.extend(prompt)
        requests += _choices(request, body)
    if len(requests) > MAX_CHOICES:
        raise InvalidRequestError.of("prompt", f"prompts times n make {len(requests)} choices, at most {MAX_CHOICES}")
    return requests


def _sampled(body: Sampled, tenant: str, base: str) -> pb.GenerateRequest:
    request = pb.GenerateRequest(parent=f"tenants/{tenant}", adapter=adapter_of(body.model, base))
    if not body.model:
        raise InvalidRequestError.of("model", f"must not be empty; the bare base is {base!r}")
    request.sticky_key = body.prompt_cache_key or body.user or ""
    for name, weight in (body.adapters or {}).items():
        if body.model != base:
            raise InvalidRequestError.of("adapters", f"a blend needs the base as its model: {base!r}")
        request.adapters.add(name=name, weight=weight)
    if body.adapter_scale is not None:
        request.adapter_scale = body.adapter_scale
    sampling = request.sampling
    for field in ("temperature", "top_p", "min_p"):
        if (value := getattr(body, field)) is not None:
            setattr(sampling, field, value)
    if body.top_k is not None:
        sampling.top_k = max(0, body.top_k)  # elsewhere -1 means off
    request.stop.extend([body.stop] if isinstance(body.stop, str) else body.stop or [])
    return request


def _choices(request: pb.GenerateRequest, body: Sampled) -> list[pb.GenerateRequest]:
    """`n` copies; each draws from a seed of its own, the first from the caller's."""
    requests = []
    for index in range(body.n or 1):
        choice = pb.GenerateRequest()
        choice.CopyFrom(request)
        if body.seed is not None:
            choice.sampling.seed = (body.seed + index) % 2**64
        requests.append(choice)
    return requests


def _message(message: ChatMessage, where: str) -> pb.ChatMessage:
    if message.function_call:
        raise InvalidRequestError.of(f"{where}.function_call", _OLD_CALLS)
    role = "system" if message.role == "developer" else message.role
    # An assistant that only called tools said nothing.
    text = "" if message.content is None and message.tool_calls else _text(message.content, f"{where}.content")
    made = pb.ChatMessage(role=role, content=text, tool_call_id=message.tool_call_id or "")
    for call in message.tool_calls or []:
        made.tool_calls.add(id=call.id, name=call.function.name, arguments_json=call.function.arguments)
    return made


def _text(content: str | list[TextPart] | None, where: str) -> str:
    if content is None:
        raise InvalidRequestError.of(where, "must be text")
    if isinstance(content, str):
        return content
    return "".join(part_text(part.type, part.text, f"{where}[{index}]") for index, part in enumerate(content))


def part_text(kind: str, text: str | None, where: str) -> str:
    """The text of a part of a message.

    Raises:
        InvalidRequestError: it is of another kind.
    """
    if kind != "text":
        raise InvalidRequestError.of(f"{where}.type", f"only 'text' is supported, found {kind[:40]!r}")
    if text is None:
        raise InvalidRequestError.of(f"{where}.text", "is missing")
    return text


def _prompts(prompt: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """The prompts that OpenAI's four forms mean: a text, texts, tokens, lists of tokens."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequestError.of("prompt", "must not be empty")
    if all(isinstance(item, int) for item in prompt):
        return [_tokens(prompt, "prompt")]
    if any(isinstance(item, int) for item in prompt):
        raise InvalidRequestError.of("prompt", "must hold either token ids or prompts, not both")
    return [
        item if isinstance(item, str) else _tokens(item, f"prompt[{index}]")  # type: ignore[arg-type]
        for index, item in enumerate(prompt)
    ]


def _tokens(ids: list[Any], where: str) -> list[int]:
    if not all(0 <= token < 2**32 for token in ids):
        raise InvalidRequestError.of(where, "token ids must be from 0 to 4294967295")
    return ids
