"""Child processes with a lifeline: their stdin.

When the daemon dies, however it dies, they read the end of their stdin and end, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

MAX_LOG_BYTES = 16 * 1024 * 1024
TAIL_BYTES = 16 * 1024
# One JSON line of a trainer is far shorter.
LINE_LIMIT = 1024 * 1024


class Child:
    """One process of ours, run as a module of this Python.

    Its stderr goes to a log file; :meth:`tail` gives the end of what this process wrote there.
    """

    def __init__(self, process: asyncio.subprocess.Process, log: Path, offset: int) -> None:
        self.process = process
        self._log = log
        self._offset = offset

    @classmethod
    async def spawn(
        cls, arguments: Sequence[str], log: Path, *, read_stdout: bool = False, keep: Sequence[int] = ()
    ) -> Child:
        """Start `python -m` with `arguments`.

        Args:
            read_stdout: keep stdout as a pipe to read lines from; otherwise it goes to the log, too.
            keep: file descriptors that it inherits.
        """
        with _opened(log) as writing:
            offset = writing.tell()
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE if read_stdout else writing,
                stderr=writing,
                limit=LINE_LIMIT,
                pass_fds=keep,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                # Ctrl-C in the daemon's terminal is the daemon's to handle: it drains first.
                start_new_session=True,
            )
        return cls(process, log, offset)

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code; negative for a signal; None while it runs."""
        return self.process.returncode

    async def wait(self) -> int:
        """Wait for its end."""
        return await self.process.wait()

    async def say(self, line: str) -> None:
        """Write a line to its stdin; nothing happens if it is gone."""
        if self.process.stdin is not None and not self.process.stdin.is_closing():
            with contextlib.suppress(ConnectionError, OSError):
                self.process.stdin.write(line.encode() + b"\n")
                await self.process.stdin.drain()

    async def stop(self, grace_s: float) -> int:
        """Close the lifeline, and end the process by force if it is not gone after `grace_s` seconds."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        for action in (None, self.process.terminate, self.process.kill):
            if action is not None:
                with contextlib.suppress(ProcessLookupError):
                    action()
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(self.process.wait(), grace_s if action is None else 2.0)
        return await self.process.wait()

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    def how_it_ended(self) -> str:
        """`signal SIGKILL` or `exit code 1`."""
        code = self.process.returncode
        if code is None:
            return "still running"
        if code < 0:
            try:
                return f"signal {signal.Signals(-code).name}"
            except ValueError:
                return f"signal {-code}"
        return f"exit code {code}"

    def tail(self, lines: int = 5) -> str:
        """The last lines that it wrote to its log, joined by ' | '; empty if none."""
        try:
            with self._log.open("rb") as reading:
                end = reading.seek(0, os.SEEK_END)
                reading.seek(max(self._offset, end - TAIL_BYTES))
                text = reading.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-lines:])


def _opened(log: Path) -> BinaryIO:
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        log.replace(log.with_suffix(log.suffix + ".1"))
    return log.open("ab")
