"""The dashboard in a real terminal against a real daemon: a dropped adapter appears, keys work, it ends well."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

from optiq_client import AdapterState, Client
from tests.adapters import write_tiny_adapter
from tests.integration.conftest import Daemon, eventually

_ESCAPES = re.compile(rb"\x1b(\[[0-9;?<>=]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[()][0-9A-B]|[=>78])")


class Terminal:
    """A program in a pseudo-terminal of 100 by 30."""

    def __init__(self, *command: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)
        self._seen = b""

    def type(self, keys: str) -> None:
        """Press keys; what was shown before is forgotten."""
        self._seen = b""
        os.write(self._master, keys.encode())

    def shows(self, text: str, seconds: float = 60.0) -> bool:
        """Whether a text is drawn in time, since the last keys."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if text in _ESCAPES.sub(b"", self._seen).decode(errors="replace"):
                return True
            self._read(0.2)
        return False

    def ended(self, seconds: float = 30.0) -> int | None:
        """The exit code, once it has ended; what it still draws is read."""
        until = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < until:
            self._read(0.2)
        return self.process.poll()

    def close(self) -> None:
        """End it, however it is."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._master)

    def _read(self, seconds: float) -> None:
        if select.select([self._master], [], [], seconds)[0]:
            try:
                self._seen += os.read(self._master, 65536)
            except OSError:  # the other end is closed
                time.sleep(seconds)


@contextmanager
def dashboard(daemon: Daemon) -> Iterator[Terminal]:
    terminal = Terminal(sys.executable, "-m", "optiq_daemon", "tui", "--home", str(daemon.home))
    try:
        yield terminal
    finally:
        terminal.close()


def test_a_dropped_adapter_appears_and_keys_work(tiny_daemon: Daemon, tiny_client: Client) -> None:
    with dashboard(tiny_daemon) as terminal:
        assert terminal.shows("connected"), "it never connected"
        write_tiny_adapter(tiny_daemon.home / "adapters" / "default" / "a-terminal-drop")
        assert eventually(
            lambda: any(
                adapter.id == "a-terminal-drop" and adapter.state in (AdapterState.AVAILABLE, AdapterState.RESIDENT)
                for adapter in tiny_client.adapters.list()
            )
        )
        terminal.type("2")
        assert terminal.shows("a-terminal-drop"), "the adapters screen does not show it"
        terminal.type("6")
        assert terminal.shows("adapter."), "the events screen shows no event of an adapter"
        terminal.type("q")
        assert terminal.ended() == 0
    tiny_client.adapters.delete("a-terminal-drop")
