"""Loads an engine from several threads while adapters come, go and change, and compares every answer.

The engine runs first, for a round; the reference then answers the round's requests one after the other with dense
weights. Answers of requests that were cancelled are compared as far as they came.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from optiq_core.base import LoadedBase
from optiq_core.engine.engine import Engine
from optiq_core.engine.types import (
    EngineRequest,
    Event,
    Failed,
    Finished,
    InUseError,
    NotLoadedError,
    Reason,
    Tokens,
)

from .dense import Deltas, Dense, weight_deltas
from .load import RequestMaker, Shape, write_adapters

_PATIENCE_S = 300.0


@dataclass
class Answer:
    """What one request got."""

    request: EngineRequest
    tokens: list[int] = field(default_factory=list)
    finished: Finished | None = None


@dataclass
class Report:
    """Counts of a run; ``differences`` describes each answer that is not the reference's."""

    requests: int = 0
    tokens: int = 0
    equal: int = 0
    explained: int = 0
    cancelled: int = 0
    blends: int = 0
    cached_tokens: int = 0
    mounts: int = 0
    unmounts: int = 0
    most_rows: int = 0
    most_adapters: int = 0
    differences: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Add the counts of another run."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            setattr(self, name, max(mine, value) if name.startswith("most") else mine + value)


class Net:
    """One engine under load.

    Args:
        base: what the engine serves.
        dense: the reference, with weights of its own.
        root: an empty folder for adapters.
        shape: how large requests and adapters are.
        seed: the same seed makes the same requests; the order in which threads run is not part of it.
    """

    def __init__(self, base: LoadedBase, dense: Dense, root: Path, shape: Shape, seed: int) -> None:
        self._dense, self._seed, self._shape = dense, seed, shape
        self._folders = write_adapters(root, dense.model, shape, count=12, seed=seed)
        self._deltas: dict[str, Deltas] = {k: weight_deltas(f, dense.model) for k, f in self._folders.items()}
        # Little memory, so that rows wait and prefixes are dropped.
        draw = random.Random(seed)
        self._engine = Engine(
            base,
            max_batch=draw.choice((3, 6, 12)),
            max_queue=64,
            prefill_chunk=draw.choice((8, 32, 128)),
            prefix_cache_bytes=draw.choice((0, 1, 8)) * base_tokens(base, 200),
        )

    def run(self, requests: int, threads: int = 4) -> Report:
        """Serve so many requests, then compare all of them."""
        self._engine.start()
        report = Report()
        answers: list[Answer] = []
        failures: list[BaseException] = []
        stop = threading.Event()
        lock = threading.Lock()

        def guarded(work: Callable[[], None]) -> Callable[[], None]:
            def run() -> None:
                try:
                    work()
                except BaseException as error:
                    failures.append(error)

            return run

        def ask(seed: int) -> Callable[[], None]:
            def work() -> None:
                mine = self._ask(RequestMaker(self._shape, seed), random.Random(seed), requests // threads)
                with lock:
                    answers.extend(mine)

            return guarded(work)

        churn = threading.Thread(target=guarded(lambda: self._churn(stop, report)))
        workers = [threading.Thread(target=ask(self._seed * 100 + i)) for i in range(threads)]
        try:
            for thread in (churn, *workers):
                thread.start()
            for thread in workers:
                thread.join()
        finally:
            stop.set()
            churn.join()
            self._engine.close()
        if failures:
            raise failures[0]
        for answer in answers:
            self._compare(answer, report)
        return report

    def _ask(self, maker: RequestMaker, draw: random.Random, count: int) -> list[Answer]:
        """Send requests, a few at a time, and cancel some of them."""
        answers: list[Answer] = []
        running: list[tuple[Answer, queue.Queue[Event]]] = []
        while len(answers) + len(running) < count or running:
            if len(answers) + len(running) < count and (len(running) < 4 or draw.random() < 0.2):
                request = maker.make(list(self._folders))
                events: queue.Queue[Event] = queue.Queue()
                try:
                    self._engine.submit(request, events.put).result()
                except NotLoadedError:
                    self._load_parts(request)
                    continue
                running.append((Answer(request), events))
                if draw.random() < 0.15:
                    time.sleep(draw.uniform(0, 0.1))
                    self._engine.cancel(request.request_id)
            else:
                answer, events = running.pop(draw.randrange(len(running)))
                _collect(answer, events)
                answers.append(answer)
        return answers

    def _load_parts(self, request: EngineRequest) -> None:
        for digest, _ in request.parts:
            self._engine.load_adapter(digest, self._folders[digest])

    def _churn(self, stop: threading.Event, report: Report) -> None:
        """Mount and unmount adapters for as long as there are requests."""
        draw = random.Random(self._seed)
        while not stop.is_set():
            key = draw.choice(list(self._folders))
            try:
                self._engine.unload_adapter(key)
                report.unmounts += 1
            except InUseError:
                pass
            key = draw.choice(list(self._folders))
            self._engine.load_adapter(key, self._folders[key])
            report.mounts += 1
            stop.wait(draw.uniform(0, 0.05))

    def _compare(self, answer: Answer, report: Report) -> None:
        request, finished = answer.request, answer.finished
        assert finished is not None
        cancelled = finished.reason is Reason.CANCELLED
        report.requests += 1
        report.tokens += len(answer.tokens)
        report.cancelled += cancelled
        report.blends += len(request.parts) > 1
        report.cached_tokens += finished.cached_tokens
        report.most_rows = max(report.most_rows, finished.max_rows)
        report.most_adapters = max(report.most_adapters, finished.max_adapters)
        parts = [(self._deltas[digest], weight * request.factor) for digest, weight in request.parts]
        difference = self._dense.difference(request, parts, answer.tokens, ended=not cancelled)
        if difference is None:
            report.equal += 1
        elif difference.explained:
            report.explained += 1
        else:
            report.differences.append(f"seed {self._seed}: {difference} in {request}, {finished}")


def base_tokens(base: LoadedBase, tokens: int) -> int:
    """Return the bytes of so many tokens' KV caches in float32."""
    layers = base.model.layers
    heads = base.model.args.num_key_value_heads
    dims = base.model.args.hidden_size // base.model.args.num_attention_heads
    return 2 * 4 * len(layers) * heads * dims * tokens


def _collect(answer: Answer, events: queue.Queue[Event]) -> None:
    while answer.finished is None:
        event = events.get(timeout=_PATIENCE_S)
        if isinstance(event, Failed):
            raise AssertionError(f"{answer.request}: {event.message}")
        if isinstance(event, Tokens):
            answer.tokens += event.ids
        elif isinstance(event, Finished):
            answer.finished = event
