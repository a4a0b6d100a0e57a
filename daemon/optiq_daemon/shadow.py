"""A second opinion on requests that have been answered: run when nobody needs the row, kept, never returned."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import NamedTuple

import msgspec

from optiq_core.errors import OptiqError
from optiq_daemon.admission import Admission, ShadowTicket
from optiq_daemon.names import RouteKey
from optiq_daemon.router import Decision
from optiq_daemon.routes import BASE
from optiq_daemon.store import Store
from optiq_daemon.tasks import Tasks
from optiq_protos.internal.v1 import engine_pb2
from optiq_protos.v1 import generation_pb2

log = logging.getLogger(__name__)

KEPT_ANSWERS = 200
MAX_PENDING = 32
MAX_CHARACTERS = 20_000
EXPIRE_S = 60.0


class Answer(msgspec.Struct, kw_only=True):
    """One comparison; the fields of `optiq.v1.ShadowAnswer`."""

    time: float
    request_id: str
    target: str
    shadow: str
    digest: str = ""
    shadow_digest: str = ""
    answer: str = ""
    shadow_answer: str = ""
    outcome: str = "FAILED"
    completion_tokens: int = 0
    shadow_completion_tokens: int = 0
    tokens_per_second: float = 0.0
    shadow_tokens_per_second: float = 0.0

    def take(self, response: generation_pb2.GenerateResponse) -> None:
        """Note a response that the caller got."""
        if response.HasField("chunk") and len(self.answer) < MAX_CHARACTERS:
            self.answer += response.chunk.text
        elif response.HasField("finished"):
            self.completion_tokens = response.finished.usage.completion_tokens
            self.tokens_per_second = response.finished.timings.tokens_per_second


class Work(NamedTuple):
    """One shadow request: what it is compared with, and how to run it, which also notes the digest that serves it."""

    decision: Decision
    answered: Answer
    responses: Callable[[Answer], AsyncGenerator[engine_pb2.GenerateResponse, None]]


class Shadows:
    """Runs shadow requests as rows become free; lives on the event loop."""

    def __init__(self, store: Store, admission: Admission) -> None:
        self._store = store
        self._admission = admission
        self._pending: Counter[str] = Counter()
        self._tasks = Tasks()

    def offer(self, work: Work) -> None:
        """Run a shadow request when there is leisure; dropped if its tenant has too many waiting."""
        tenant = work.decision.route.tenant
        if self._pending[tenant] < MAX_PENDING:
            self._pending[tenant] += 1
            self._tasks.start(self._work(work), f"shadow {work.decision.route.name}")

    def answers(self, key: RouteKey) -> list[Answer]:
        """The latest of a route, newest first."""
        rows = self._store.rows(
            "SELECT document FROM shadow_answers WHERE tenant = ? AND route = ? ORDER BY sequence DESC", key
        )
        return [msgspec.json.decode(row["document"], type=Answer) for row in rows]

    async def close(self) -> None:
        """End what is under way."""
        await self._tasks.cancel()

    async def _work(self, work: Work) -> None:
        answer = work.answered
        try:
            with self._admission.shadow() as ticket:
                try:
                    await asyncio.wait_for(ticket.given.wait(), EXPIRE_S)
                except TimeoutError:
                    answer.outcome = "EXPIRED"
                else:
                    answer.outcome = await self._run(work, ticket)
        except OptiqError as error:
            log.info("shadow of %s failed: %s", work.decision.route.name, error)
        finally:
            self._pending[work.decision.route.tenant] -= 1
        self._keep(work.decision.route, answer)

    async def _run(self, work: Work, ticket: ShadowTicket) -> str:
        running = asyncio.create_task(self._generate(work))
        evicted = asyncio.create_task(ticket.evicted.wait())
        try:
            await asyncio.wait([running, evicted], return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                return "EVICTED"
            running.result()
            return "ANSWERED"
        finally:
            for task in (running, evicted):
                task.cancel()
            await asyncio.gather(running, evicted, return_exceptions=True)

    async def _generate(self, work: Work) -> None:
        answer = work.answered
        async with aclosing(work.responses(answer)) as responses:
            async for response in responses:
                if response.HasField("chunk") and len(answer.shadow_answer) < MAX_CHARACTERS:
                    answer.shadow_answer += response.chunk.text
                elif response.HasField("finished"):
                    answer.shadow_completion_tokens = response.finished.usage.completion_tokens
                    answer.shadow_tokens_per_second = response.finished.timings.tokens_per_second

    def _keep(self, key: RouteKey, answer: Answer) -> None:
        with self._store.transaction():
            # Nothing is kept for a route that was deleted meanwhile.
            self._store.execute(
                "INSERT INTO shadow_answers (tenant, route, document)"
                " SELECT tenant, id, ? FROM routes WHERE tenant = ? AND id = ?",
                (msgspec.json.encode(answer).decode(), *key),
            )
            self._store.execute(
                "DELETE FROM shadow_answers WHERE tenant = ? AND route = ? AND sequence NOT IN (SELECT sequence FROM"
                " shadow_answers WHERE tenant = ? AND route = ? ORDER BY sequence DESC LIMIT ?)",
                (*key, *key, KEPT_ANSWERS),
            )


def begin(decision: Decision, digest: str) -> Answer:
    """A comparison that has its request, and neither answer yet."""
    return Answer(
        time=time.time(),
        request_id=decision.request_id,
        target=decision.target,
        shadow=decision.shadow or BASE,
        digest=digest,
    )
