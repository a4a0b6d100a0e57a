"""Requests to an engine object, timed by the arrival of their tokens."""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.types import Event

_numbers = itertools.count()


class Stream:
    """A greedy request, submitted at once.

    Args:
        engine: a started engine.
        prompt: token ids.
        tokens: to generate.
        adapter: a loaded adapter's key, empty for the base.

    Attributes:
        times: when each token came, in `time.perf_counter()` seconds.
    """

    def __init__(self, engine: Engine, prompt: list[int], tokens: int, adapter: str = "") -> None:
        from ..engine.types import EngineRequest

        self._engine, self.times = engine, list[float]()
        self._id = f"bench-{next(_numbers)}"
        self._ended, self.error = threading.Event(), ""
        # A namespace of its own: nothing of its prompt is cached.
        request = EngineRequest(self._id, tuple(prompt), tokens, adapter=adapter, namespace=self._id)
        self.began = time.perf_counter()
        engine.submit(request, self._take).result()

    def wait(self, seconds: float = 300) -> Stream:
        """Wait for the end.

        Raises:
            TimeoutError: it takes longer.
            RuntimeError: the engine failed.
        """
        if not self._ended.wait(seconds):
            raise TimeoutError(f"no end within {seconds:.0f} s")
        if self.error:
            raise RuntimeError(self.error)
        return self

    def cancel(self) -> None:
        """End it at the next step, and wait for that."""
        self._engine.cancel(self._id)
        self.wait()

    @property
    def first_token_ms(self) -> float:
        """From submission to the first token."""
        return (self.times[0] - self.began) * 1e3

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """When each token after the first came, and seconds since the one before."""
        return [(later, later - earlier) for earlier, later in itertools.pairwise(self.times)]

    def _take(self, event: Event) -> None:
        from ..engine.types import Failed, Finished, Tokens

        if isinstance(event, Tokens) and event.ids:
            self.times.append(time.perf_counter())
        elif isinstance(event, Failed):
            self.error = event.message
        if isinstance(event, Finished | Failed):
            self._ended.set()
