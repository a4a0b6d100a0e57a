"""Many generations at once over one client, each in a thread of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from optiq_client import Client
from optiq_core.experiments.tasks import Item

MAX_ANSWER_TOKENS = 24


@dataclass(frozen=True)
class Answer:
    """What one request came back with."""

    adapter: str
    digest: str
    text: str
    first_token_ms: float
    tokens_per_second: float
    completion_tokens: int
    max_adapters: int
    max_rows: int


@dataclass(frozen=True)
class Chorus:
    """All answers, in the order asked, and the seconds that they took together."""

    answers: tuple[Answer, ...]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens of all requests over the time from the first to the last."""
        return sum(a.completion_tokens for a in self.answers) / self.seconds


def ask_all(client: Client, asked: Sequence[tuple[str, list[dict[str, str]]]]) -> Chorus:
    """Send every (adapter, messages) at once and wait for all; an empty adapter is the base."""
    began = time.perf_counter()
    with ThreadPoolExecutor(max_workers=max(len(asked), 1)) as pool:
        answers = tuple(pool.map(lambda a: _ask(client, *a), asked))
    return Chorus(answers, time.perf_counter() - began)


def answer_items(client: Client, adapter: str, items: Sequence[Item]) -> list[str]:
    """Return the answers to a task's items, all asked at once; the daemon batches and queues them."""
    return [a.text for a in ask_all(client, [(adapter, item.prompt) for item in items]).answers]


def _ask(client: Client, adapter: str, messages: list[dict[str, str]]) -> Answer:
    with client.generate(messages, adapter=adapter, max_tokens=MAX_ANSWER_TOKENS) as generation:
        text = generation.read()
        started, finished = generation.started, generation.finished
    if started is None or finished is None:
        raise RuntimeError("the stream ended without its last message")
    return Answer(
        adapter=adapter,
        digest=started.adapter_digest,
        text=text.strip(),
        first_token_ms=finished.timings.time_to_first_token_ms,
        tokens_per_second=finished.timings.tokens_per_second,
        completion_tokens=finished.usage.completion_tokens,
        max_adapters=finished.batch.max_adapters,
        max_rows=finished.batch.max_rows,
    )
