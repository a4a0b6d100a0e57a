"""What goes into the engine and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .constraint import Constraint


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: 0 for greedy.
        top_p: nucleus mass in (0, 1]; 1 for off.
        top_k: most likely tokens to keep; 0 for off.
        min_p: smallest probability relative to the most likely token; 0 for off.
        seed: fixes the draw whatever else is in the batch; None draws a seed.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None


@dataclass(frozen=True)
class EngineRequest:
    """A request in tokens.

    Attributes:
        request_id: unique among the running ones.
        prompt: token ids, at least one.
        adapter: digest of a loaded adapter, empty for the base.
        blend: loaded adapters with their weights, instead of one adapter; their deltas add up.
        factor: multiplies what the adapter or the blend adds.
        namespace: whose prompts this one may share caches with; opaque.
        max_tokens: tokens to generate at most, at least one.
        stop: texts before which generation ends.
        top_logprobs: tell every token's log-probability, and so many of the most likely ones'; None for neither.
        constraint: what the answer is held to; made for this request alone. None for anything.
        urgent: its prompt is processed before others' that are not.
    """

    request_id: str
    prompt: tuple[int, ...]
    max_tokens: int
    adapter: str = ""
    blend: tuple[tuple[str, float], ...] = ()
    factor: float = 1.0
    namespace: str = ""
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    constraint: Constraint | None = None
    urgent: bool = False

    @property
    def parts(self) -> tuple[tuple[str, float], ...]:
        """What really is added, before the factor: each digest once, in order, none with weight 0."""
        total: dict[str, float] = {}
        for digest, weight in self.blend or ([(self.adapter, 1.0)] if self.adapter else []):
            total[digest] = total.get(digest, 0.0) + weight
        return tuple((digest, weight) for digest, weight in sorted(total.items()) if weight and self.factor)

    @property
    def length(self) -> int:
        """Tokens at the most, prompt and answer."""
        return len(self.prompt) + self.max_tokens


class Reason(StrEnum):
    """Why a request ended."""

    STOP = "stop"
    STOP_STRING = "stop_string"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Queued:
    """The request waits; 1 is next."""

    position: int


@dataclass(frozen=True)
class Started:
    """The request is in a batch; its prompt is being processed."""

    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class TokenLogprob:
    """A token's log-probability under the model's own distribution, before temperature and its like.

    Attributes:
        top: the most likely tokens in its place with theirs, best first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Tokens:
    """Generated tokens and the text that they completed, which may be empty inside a character.

    ``logprobs`` has one for each token where the request asked for them.
    """

    ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The request ended by itself or was cancelled; times in milliseconds.

    ``max_rows`` and ``max_adapters`` are the most rows and distinct adapters (the bare base counts as one) in any of
    the decode steps that the request took part in.
    """

    reason: Reason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    queue_ms: float
    prefill_ms: float
    first_token_ms: float
    decode_ms: float
    max_rows: int
    max_adapters: int
    steps: int

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first over the time that they took."""
        return (self.completion_tokens - 1) / self.decode_ms * 1e3 if self.decode_ms > 0 else 0.0


@dataclass(frozen=True)
class Failed:
    """The request ended by an error of the engine; the message holds nothing of any request."""

    message: str


Event = Queued | Started | Tokens | Finished | Failed
# Called on the engine's thread; must not block.
Sink = Callable[[Event], None]


class QueueFullError(Exception):
    """The queue is at its limit; try again later."""


class TooLargeError(Exception):
    """The request alone would take more memory than there is for KV caches."""


class NotLoadedError(Exception):
    """The adapter that a request names is not loaded."""


class InUseError(Exception):
    """The adapter cannot leave while requests use it."""


@dataclass(frozen=True)
class EngineStatus:
    """A snapshot; sizes in bytes."""

    active_rows: int
    queued_requests: int
    resident_adapters: int
    adapter_bytes: int
    kv_cache_bytes: int
    active_memory_bytes: int
    peak_memory_bytes: int
    tokens_per_second: float
    generated_tokens: int
    max_adapters_in_one_step: int
    kv_budget_bytes: int
    prefix_cache_bytes: int
    prefix_cache_entries: int
    prefix_hits: int
    prefix_hit_tokens: int
