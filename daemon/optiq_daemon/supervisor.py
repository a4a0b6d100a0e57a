"""Keeps one engine process running: starts it, waits for its base, starts it again when it dies."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from optiq_client import paths
from optiq_core.errors import OptiqError
from optiq_daemon.children import Child
from optiq_daemon.engine_client import EngineClient
from optiq_daemon.engine_link import EngineLink
from optiq_daemon.errors import RefusedError, UnavailableError, log_unexpected
from optiq_daemon.events import EventLog
from optiq_daemon.signals import Changed
from optiq_daemon.states import EngineState
from optiq_daemon.tasks import Tasks
from optiq_protos.internal.v1 import engine_pb2

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.25
LAST_BACKOFF_S = 30.0
# An engine that served this long has not failed "again" when it dies.
HEALTHY_S = 60.0
STOP_GRACE_S = 5.0
# Deaths in a row after which it counts as failed; it is still tried again, at the longest back-off.
GIVE_UP_AFTER = 6

T = TypeVar("T")

ServeHook = Callable[[EngineClient, engine_pb2.GetBaseResponse], Awaitable[None]]


class EngineSupervisor:
    """The engine process, its state, and its client while it serves.

    Args:
        arguments: module and flags of the process; `--socket` and `--stream` are added.
        home: the daemon's folder, for the socket.
        on_up: awaited when a process has its base, before requests are let in.
        on_down: called as soon as it is gone.
    """

    def __init__(
        self,
        arguments: list[str],
        home: Path,
        log_file: Path,
        events: EventLog,
        *,
        on_up: ServeHook,
        on_down: Callable[[], None],
    ) -> None:
        self._arguments = arguments
        self._home = home
        self._log_file = log_file
        self._events = events
        self._on_up = on_up
        self._on_down = on_down
        self._tasks = Tasks()
        self._client: EngineClient | None = None
        self.child: Child | None = None
        self.state = EngineState.STARTING
        self.message = ""
        self.restarts = 0
        self.base: engine_pb2.GetBaseResponse | None = None
        self.changed = Changed()

    def start(self) -> None:
        """Run the process until :meth:`stop`."""
        self._tasks.start(self._run(), "engine supervisor")

    async def stop(self) -> None:
        """End the process."""
        await self._tasks.cancel()
        await self._end_life()

    @property
    def client(self) -> EngineClient:
        """The client of the serving process.

        Raises:
            UnavailableError: none is serving.
        """
        if self.state is EngineState.SERVING and self._client is not None:
            return self._client
        if self.state is EngineState.FAILED:
            raise UnavailableError(
                f"the engine cannot start: {self.message}", reason="ENGINE_FAILED", retry_seconds=LAST_BACKOFF_S
            )
        what = "is loading the base" if self.state is EngineState.STARTING else "is being restarted"
        raise UnavailableError(f"the engine {what}", reason="ENGINE_NOT_SERVING", retry_seconds=2.0)

    async def settled(self) -> EngineState:
        """Wait until it serves or has failed."""
        while True:
            ticket = self.changed.ticket()
            if self.state in (EngineState.SERVING, EngineState.FAILED):
                return self.state
            await ticket.wait()

    async def _run(self) -> None:
        backoff = FIRST_BACKOFF_S
        failures = 0
        while True:
            began = time.monotonic()
            try:
                await self._live()
            except RefusedError as error:
                # The process itself says that it cannot load the base; trying at once again would change nothing.
                self._set(EngineState.FAILED, error.message)
                backoff = LAST_BACKOFF_S
            except (OptiqError, OSError) as error:
                if time.monotonic() - began > HEALTHY_S:
                    backoff, failures = FIRST_BACKOFF_S, 0
                failures += 1
                state = EngineState.RESTARTING if failures < GIVE_UP_AFTER else EngineState.FAILED
                self._set(state, str(error))
            except Exception as error:
                error_id = log_unexpected("engine supervisor", error)
                self._set(EngineState.RESTARTING, f"an unexpected error, logged by the daemon as {error_id}")
            finally:
                await self._end_life()
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, LAST_BACKOFF_S)
            self.restarts += 1

    async def _live(self) -> None:
        """One process from start to death; always ends with an exception that says why."""
        path = self._fresh_socket()
        ours, theirs = socket.socketpair()
        flags = ["--socket", str(path), "--stream", str(theirs.fileno())]
        link = await EngineLink.open(ours)
        try:
            child = self.child = await Child.spawn([*self._arguments, *flags], self._log_file, keep=[theirs.fileno()])
        except BaseException:
            link.close()
            raise
        finally:
            theirs.close()
        client = self._client = EngineClient(path, link)
        death = asyncio.ensure_future(child.wait())
        log.info("engine pid=%d started", child.pid)
        try:
            base = await _unless(death, client.base())
            self.base = base
            await _unless(death, self._on_up(client, base))
            self._set(EngineState.SERVING, "")
            await death
        except UnavailableError:
            # The connection breaks a moment before the process is reaped.
            await asyncio.wait([death], timeout=STOP_GRACE_S)
            raise self._death_notice(child) from None
        finally:
            death.cancel()
        raise self._death_notice(child)

    def _fresh_socket(self) -> Path:
        for left in paths.run_path(self._home).glob("engine-*.sock"):
            left.unlink(missing_ok=True)
        return paths.engine_socket_path(self._home, secrets.token_hex(2))

    def _death_notice(self, child: Child) -> UnavailableError:
        tail = child.tail()
        return UnavailableError(f"the engine process ended with {child.how_it_ended()}" + (f": {tail}" if tail else ""))

    async def _end_life(self) -> None:
        client, self._client = self._client, None
        child, self.child = self.child, None
        if client is not None:
            self._on_down()
            await client.close()
        if child is not None and child.returncode is None:
            await child.stop(STOP_GRACE_S)

    def _set(self, state: EngineState, message: str) -> None:
        if state is EngineState.SERVING:
            kind = "engine.restarted" if self.restarts else "engine.serving"
            self._events.append(kind, "", "the engine serves", {"restarts": str(self.restarts)})
        elif state is not self.state or message != self.message:
            kind = "engine.failed" if state is EngineState.FAILED else "engine.died"
            self._events.append(kind, "", message)
        self.state, self.message = state, message
        self.changed.notify()


async def _unless(death: asyncio.Future[int], work: Awaitable[T]) -> T:
    """Await `work`, but not beyond the process's death."""
    doing = asyncio.ensure_future(work)
    try:
        both: list[asyncio.Future[Any]] = [doing, death]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise UnavailableError("the engine process ended")
    finally:
        doing.cancel()
