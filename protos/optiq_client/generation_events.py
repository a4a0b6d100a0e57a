"""What a generation tells, event by event; like :mod:`optiq_client.types`."""

from __future__ import annotations

from dataclasses import dataclass

from optiq_client.chat import ToolCall
from optiq_client.states import FinishReason


@dataclass(frozen=True, slots=True)
class Queued:
    """The request waits; position 1 is next."""

    position: int


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """A version that serves a request; ``weight`` is its weight in the blend times the request's scale."""

    name: str
    digest: str
    weight: float


@dataclass(frozen=True, slots=True)
class Started:
    """The request runs, with these versions to its end.

    ``adapter`` and ``adapter_digest`` are empty for the bare base and for a blend of several; ``adapters`` has all.
    """

    request_id: str
    adapter: str
    adapter_digest: str
    prompt_tokens: int
    cached_tokens: int
    adapters: tuple[ServedAdapter, ...] = ()
    route: str = ""
    route_why: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability before temperature and its like; ``top`` has the most likely ones in its place."""

    token_id: int
    text: str
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """What these tokens completed: text, calls of tools; their log-probabilities where they were asked for."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds from admission, and tokens per second after the first token."""

    queue_ms: float
    prefill_ms: float
    time_to_first_token_ms: float
    decode_ms: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class BatchStats:
    """What the request shared its forward passes with."""

    max_rows: int
    max_adapters: int
    steps: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The request ended well."""

    reason: FinishReason
    usage: Usage
    timings: Timings
    batch: BatchStats


GenerationEvent = Queued | Started | Chunk | Finished
