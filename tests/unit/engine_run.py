"""A submitted request, for tests of the engine."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from optiq_core.engine.engine import Engine
from optiq_core.engine.types import EngineRequest, Event, Failed, Finished, Started, Tokens


@contextmanager
def held(engine: Engine) -> Iterator[None]:
    """No step runs meanwhile."""
    go_on = threading.Event()
    engine._call(lambda: go_on.wait(60))
    try:
        yield
    finally:
        go_on.set()


class Run:
    """Collects the events of one request."""

    def __init__(self, engine: Engine, request: EngineRequest, *, wait: bool = True) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self.seen: list[Event] = []
        self.accepted = engine.submit(request, self.events.put)
        if wait:
            self.accepted.result()

    @classmethod
    def together(cls, engine: Engine, requests: Iterable[EngineRequest]) -> list[Run]:
        """Submit requests so that no step runs before the last of them waits."""
        with held(engine):
            runs = [cls(engine, one, wait=False) for one in requests]
        for run in runs:
            run.accepted.result()
        return runs

    def next(self) -> Event:
        """Wait for the next event."""
        event = self.events.get(timeout=120)
        self.seen.append(event)
        assert not isinstance(event, Failed), event
        return event

    def wait(self) -> Finished:
        """Wait for the end."""
        while True:
            event = self.next()
            if isinstance(event, Finished):
                return event

    @property
    def ids(self) -> list[int]:
        """Its tokens."""
        return [i for e in self.seen if isinstance(e, Tokens) for i in e.ids]

    @property
    def text(self) -> str:
        """Its text."""
        return "".join(e.text for e in self.seen if isinstance(e, Tokens))

    @property
    def cached(self) -> int:
        """Prompt tokens that came from the prefix cache."""
        return next(e.cached_tokens for e in self.seen if isinstance(e, Started))


def request(name: str, prompt: tuple[int, ...], **kwargs: object) -> EngineRequest:
    """A short request."""
    return EngineRequest(request_id=name, prompt=prompt, **{"max_tokens": 12, **kwargs})  # type: ignore[arg-type]
