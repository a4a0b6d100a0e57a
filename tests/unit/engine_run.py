"""A submitted request, for tests of the engine."""

from __future__ import annotations

import queue

from optiq_core.engine.engine import Engine
from optiq_core.engine.types import EngineRequest, Event, Failed, Finished, Started, Tokens


class Run:
    """Collects the events of one request."""

    def __init__(self, engine: Engine, request: EngineRequest) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self.seen: list[Event] = []
        engine.submit(request, self.events.put).result()

    def next(self) -> Event:
        """Wait for the next event."""
        event = self.events.get(timeout=60)
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
