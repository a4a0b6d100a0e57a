"""One life of a trainer process, from its start to its last word."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from optiq_core.train.events import Cancelled, Event, Failed, Heartbeat, Started, Succeeded, decode_event
from optiq_daemon.children import Child
from optiq_daemon.trainer_process import NO_MEMORY

log = logging.getLogger(__name__)

MODULE = "optiq_daemon.trainer_process"
LOG_NAME = "trainer.log"
LOCK_NAME = "trainer.lock"
LOCK_POLL_S = 0.1
EXIT_STOPPED = 3
# Importing MLX and loading the base come before the first heartbeat of a busy machine.
START_GRACE_S = 120.0
END_GRACE_S = 10.0
CANCEL_GRACE_S = 60.0

_FATAL = {-number for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)}


class Outcome(NamedTuple):
    """How a life ended. `detail` is the adapter's path on success, a reason otherwise.

    `died` means without a last word: an exit code, or silent for too long. `killed` is a signal that want of memory
    ends in: the system's SIGKILL, or a fault where an allocation came back empty; `memory` is known to be that, and
    `at_bytes` what the process had.
    """

    kind: Literal["succeeded", "failed", "cancelled", "stopped", "died", "killed", "memory"]
    detail: str
    at_bytes: int = 0


class Trainer:
    """Runs the job in `job_dir`.

    Args:
        silence_s: seconds without a line after which the process is killed.
        on_event: called with everything but heartbeats and last words.
        alone: nothing is served meanwhile: it takes every core.
    """

    def __init__(
        self, job_dir: Path, *, silence_s: float, on_event: Callable[[Event], None], alone: bool = False
    ) -> None:
        self._alone = alone
        self._job_dir = job_dir
        self._silence_s = silence_s
        self._on_event = on_event
        self._cancelled = self._stopped = False
        self._training = False
        self._pace = 1.0
        self.child: Child | None = None

    async def cancel(self) -> None:
        """Ask it to end at its next step, without an adapter; it is killed if it does not."""
        self._cancelled = True
        if self.child is not None:
            await self.child.say("cancel")
            asyncio.get_running_loop().call_later(CANCEL_GRACE_S, self.child.kill)

    async def stop(self) -> None:
        """Ask it to save a checkpoint and end, to be resumed later. Before its first step there is nothing to save."""
        self._stopped = True
        if self.child is None:
            return
        if self._training:
            await self.child.say("stop")
        else:
            self.child.kill()

    async def set_pace(self, pace: float) -> bool:
        """Let it work for this share of the time; whether that is news to it."""
        if self.child is None or pace == self._pace:
            return False
        self._pace = pace
        await self.child.say(f"pace {pace:.4f}")
        return True

    async def run(self) -> Outcome:
        """Start the process and follow it to its end, which it also meets if this is cancelled."""
        with (self._job_dir / LOCK_NAME).open("a") as lock:
            if not await _locked(lock.fileno()):
                return Outcome("died", f"another trainer still ran after {START_GRACE_S:.0f} s")
            child = self.child = await Child.spawn(
                [MODULE, "--job-dir", str(self._job_dir), *(["--alone"] if self._alone else [])],
                self._job_dir / LOG_NAME,
                read_stdout=True,
                keep=(lock.fileno(),),
            )
        log.info("trainer pid=%d job=%s started", child.pid, self._job_dir.name)
        try:
            if self._cancelled:
                await self.cancel()
            elif self._stopped:
                child.kill()
            last = await self._follow(child)
            try:
                await asyncio.wait_for(child.wait(), END_GRACE_S)
            except TimeoutError:
                child.kill()
                await child.wait()
        finally:
            if child.returncode is None:
                child.kill()
                await asyncio.shield(child.wait())
        return last or self._without_a_word(child)

    def _without_a_word(self, child: Child) -> Outcome:
        if child.returncode == EXIT_STOPPED:
            return Outcome("stopped", "a checkpoint was saved")
        if self._stopped and not self._training and not self._cancelled:
            return Outcome("stopped", "it had not begun")
        tail = child.tail()
        reason = f"the trainer ended with {child.how_it_ended()}" + (f": {tail}" if tail else "")
        if self._cancelled:
            return Outcome("cancelled", reason)
        if NO_MEMORY.search(tail):
            return Outcome("memory", reason)
        return Outcome("killed" if child.returncode in _FATAL else "died", reason)

    async def _follow(self, child: Child) -> Outcome | None:
        stdout = child.process.stdout
        assert stdout is not None
        last: Outcome | None = None
        patience = max(self._silence_s, START_GRACE_S)
        while True:
            try:
                line = await asyncio.wait_for(stdout.readline(), patience)
            except TimeoutError:
                child.kill()
                return last or Outcome("died", f"the trainer gave no sign of life for {patience:.0f} s and was killed")
            except ValueError:
                log.warning("trainer job=%s wrote a line that is too long", self._job_dir.name)
                continue
            if not line:
                return last
            patience = self._silence_s
            try:
                event = decode_event(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                log.warning("trainer job=%s wrote a line that is no event", self._job_dir.name)
                continue
            self._training = self._training or isinstance(event, Started)
            if isinstance(event, Succeeded):
                last = Outcome("succeeded", event.adapter_path)
            elif isinstance(event, Failed):
                last = Outcome("memory" if event.memory else "failed", event.reason, event.at_bytes)
            elif isinstance(event, Cancelled):
                last = Outcome("cancelled", "cancelled as asked")
            elif not isinstance(event, Heartbeat):
                self._on_event(event)


async def _locked(descriptor: int) -> bool:
    """Take the job's lock, which the trainer inherits and holds as long as it lives; False if it stays taken.

    A trainer whose daemon was killed saves a checkpoint before it ends; the next one must not begin before that.
    """
    until = time.monotonic() + START_GRACE_S
    while time.monotonic() < until:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await asyncio.sleep(LOCK_POLL_S)
        else:
            return True
    return False
