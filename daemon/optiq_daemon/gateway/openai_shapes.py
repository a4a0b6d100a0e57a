"""Answers in OpenAI's shapes, streamed and whole."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

from optiq_daemon.gateway.answers import data
from optiq_daemon.gateway.choices import Choice, Update
from optiq_daemon.gateway.openai_tools import called
from optiq_daemon.gateway.problems import Problem
from optiq_protos.v1 import generation_pb2 as pb

_DONE = b"data: [DONE]\n\n"
_REASONS = {pb.FINISH_REASON_LENGTH: "length", pb.FINISH_REASON_TOOL_CALLS: "tool_calls"}


class OpenAIShape:
    """What chat and text completions share.

    Args:
        model: as the caller named it.
        usage: whether a stream ends with the usage.
        count: how many choices there are.
    """

    prefix = ""
    whole_object = ""
    chunk_object = ""

    def __init__(self, model: str, *, usage: bool = False, count: int = 1) -> None:
        self._head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._usage = usage
        self._choices = [Choice() for _ in range(count)]
        self._offsets = [0] * count
        self._called = [0] * count

    def problem(self, problem: Problem) -> dict[str, Any]:
        """An error's body."""
        return problem.openai()

    def whole(self, choices: list[Choice]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        return {
            **self._head,
            "object": self.whole_object,
            "system_fingerprint": _fingerprint(choices),
            "choices": [
                {
                    "index": index,
                    **self.said("".join(choice.text), choice.calls),
                    "logprobs": self.told(choice.logprobs, 0) if choice.logprobs else None,
                    "finish_reason": _reason(choice),
                }
                for index, choice in enumerate(choices)
            ],
            "usage": usage_of(choices),
        }

    def begin(self) -> bytes:
        """Nothing: the first chunk comes with a choice's start."""
        return b""

    def take(self, update: Update) -> bytes:
        """A choice's start, its text, or its end."""
        index, response = update
        kind = response.WhichOneof("event")
        choice = self._choices[index]
        if kind == "chunk":
            return self._added(index, response.chunk)
        choice.take(response)
        if kind == "started":
            return self._chunk(index, self.opened())
        if kind == "finished":
            return self._chunk(index, self.closed(), _reason(choice))
        return b""

    def end(self) -> bytes:
        """The usage, if it was asked for, and the mark of the end."""
        if not self._usage:
            return _DONE
        last = {**self._stamp(), "choices": [], "usage": usage_of(self._choices)}
        return data(last) + _DONE

    def broken(self, problem: Problem) -> bytes:
        """An error in the stream: OpenAI's clients raise on it."""
        return data(problem.openai())

    def told(self, logprobs: Sequence[pb.TokenLogprob], offset: int) -> dict[str, Any]:
        """Log-probabilities of tokens whose text begins at `offset`."""
        raise NotImplementedError

    def said(self, text: str, calls: list[pb.ToolCall]) -> dict[str, Any]:
        """A choice's whole text, and its calls."""
        raise NotImplementedError

    def opened(self) -> dict[str, Any]:
        """What a choice's first chunk holds."""
        raise NotImplementedError

    def added(self, text: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        """What a chunk of text holds, with the calls that it completed."""
        raise NotImplementedError

    def closed(self) -> dict[str, Any]:
        """What a choice's last chunk holds."""
        raise NotImplementedError

    def _added(self, index: int, chunk: pb.Chunk) -> bytes:
        calls = called(list(chunk.tool_calls), first=self._called[index])
        self._called[index] += len(calls)
        if not chunk.logprobs:
            return self._chunk(index, self.added(chunk.text, calls)) if chunk.text or calls else b""
        told = self.told(chunk.logprobs, self._offsets[index])
        self._offsets[index] += sum(len(one.text) for one in chunk.logprobs)
        return self._chunk(index, self.added(chunk.text, calls), logprobs=told)

    def _chunk(
        self, index: int, content: dict[str, Any], reason: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": reason}
        body: dict[str, Any] = {**self._stamp(), "choices": [choice]}
        if self._usage:
            body["usage"] = None
        return data(body)

    def _stamp(self) -> dict[str, Any]:
        return {**self._head, "object": self.chunk_object, "system_fingerprint": _fingerprint(self._choices)}


class ChatShape(OpenAIShape):
    """`chat.completion`."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def told(self, logprobs: Sequence[pb.TokenLogprob], offset: int) -> dict[str, Any]:
        """An object for each token."""
        content = [{**_token(one), "top_logprobs": [_token(top) for top in one.top]} for one in logprobs]
        return {"content": content, "refusal": None}

    def said(self, text: str, calls: list[pb.ToolCall]) -> dict[str, Any]:
        """A message."""
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message |= {"content": text or None, "tool_calls": called(calls)}
        return {"message": message}

    def opened(self) -> dict[str, Any]:
        """The role."""
        return {"delta": {"role": "assistant", "content": ""}}

    def added(self, text: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        """Text, calls, or both."""
        delta: dict[str, Any] = {"content": text} if text or not calls else {}
        return {"delta": {**delta, "tool_calls": calls} if calls else delta}

    def closed(self) -> dict[str, Any]:
        """Nothing more."""
        return {"delta": {}}


class TextShape(OpenAIShape):
    """`text_completion`."""

    prefix = "cmpl"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def told(self, logprobs: Sequence[pb.TokenLogprob], offset: int) -> dict[str, Any]:
        """Parallel lists."""
        offsets = accumulate((len(one.text) for one in logprobs), initial=offset)
        return {
            "tokens": [one.text for one in logprobs],
            "token_logprobs": [one.logprob for one in logprobs],
            "top_logprobs": [{top.text: top.logprob for top in one.top} for one in logprobs],
            "text_offset": list(offsets)[:-1],
        }

    def said(self, text: str, calls: list[pb.ToolCall]) -> dict[str, Any]:
        """Text; there are no tools here."""
        return {"text": text}

    def opened(self) -> dict[str, Any]:
        """No text yet."""
        return {"text": ""}

    def added(self, text: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        """Text; there are no tools here."""
        return {"text": text}

    def closed(self) -> dict[str, Any]:
        """Nothing more."""
        return {"text": ""}


def usage_of(choices: Iterable[Choice]) -> dict[str, Any]:
    """Tokens of all choices together; a prompt counts for each choice that it was processed for."""
    usages = [choice.finished.usage for choice in choices if choice.finished is not None]
    prompt, completion = sum(u.prompt_tokens for u in usages), sum(u.completion_tokens for u in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(u.cached_tokens for u in usages)},
    }


def _token(one: pb.TokenLogprob | pb.TopLogprob) -> dict[str, Any]:
    # What is half a character is no text of its own, and its bytes are not known here.
    whole = "\ufffd" not in one.text
    return {"token": one.text, "logprob": one.logprob, "bytes": list(one.text.encode()) if whole else None}


def _fingerprint(choices: Iterable[Choice]) -> str | None:
    """The version that serves: the beginning of the adapter's digest, or `base`."""
    for choice in choices:
        if choice.started is not None:
            return f"optiq-{choice.started.adapter_digest[:16] or 'base'}"
    return None


def _reason(choice: Choice) -> str:
    return _REASONS.get(choice.finished.reason, "stop") if choice.finished is not None else "stop"
