"""Asks the engine, some at a time, whether newly loaded adapters change the base's answers."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Protocol

from optiq_core.errors import OptiqError
from optiq_daemon.tasks import Tasks

log = logging.getLogger(__name__)

BATCH = 8
# Adapters that are dropped together are asked about together, once no more of them come: a probe takes the engine's
# time, which the others' loads need.
GATHER_S = 0.2
GATHER_AT_MOST_S = 10.0

NO_EFFECT = "NO_EFFECT: it is loaded, but on a fixed prompt the logits are those of the bare base"
NOT_FINITE = "NOT_FINITE: on a fixed prompt its logits have NaN or infinite values"


class ProbingEngine(Protocol):
    """What the prober needs of an engine process."""

    async def probe(self, digests: list[str]) -> dict[str, float]:
        """Largest difference of each loaded version's logits to the base's; NaN where they are not finite."""


class Prober:
    """Probes every version once per daemon.

    Args:
        found: called with a digest and a warning, empty if all is well.
    """

    def __init__(self, found: Callable[[str, str], None]) -> None:
        self._found = found
        self._engine: ProbingEngine | None = None
        self._asked: set[str] = set()
        self._waiting: dict[str, None] = {}
        self._task: asyncio.Task[None] | None = None
        self._tasks = Tasks()

    def attach(self, engine: ProbingEngine | None) -> None:
        """An engine is there, or none any more."""
        self._engine = engine
        self._start()

    def add(self, digest: str) -> None:
        """A version was loaded."""
        if digest not in self._asked:
            self._asked.add(digest)
            self._waiting[digest] = None
            self._start()

    def forget(self, digest: str) -> None:
        """A version is gone; its digest may come again."""
        self._asked.discard(digest)
        self._waiting.pop(digest, None)

    async def close(self) -> None:
        """End what is under way."""
        await self._tasks.cancel()

    def _start(self) -> None:
        if self._waiting and self._engine is not None and (self._task is None or self._task.done()):
            self._task = self._tasks.start(self._run(), "probe adapters")

    async def _gather(self) -> None:
        until = time.monotonic() + GATHER_AT_MOST_S
        seen = 0
        while len(self._waiting) > seen and time.monotonic() < until:
            seen = len(self._waiting)
            await asyncio.sleep(GATHER_S)

    async def _run(self) -> None:
        while self._waiting and (engine := self._engine) is not None:
            await self._gather()
            digests = list(self._waiting)[:BATCH]
            try:
                differences = await engine.probe(digests)
            except OptiqError as error:
                log.info("probe of %d adapters failed: %s", len(digests), error)
                # They are asked about again when they are loaded again.
                for digest in digests:
                    self.forget(digest)
                continue
            for digest in digests:
                self._waiting.pop(digest, None)
                difference = differences.get(digest)
                if difference is None:
                    self._asked.discard(digest)
                else:
                    bad = NOT_FINITE if math.isnan(difference) else NO_EFFECT if difference == 0 else ""
                    self._found(digest, bad)
