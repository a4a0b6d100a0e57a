"""Starts and ends the demo's daemon, a process of its own as for any user."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from optiq_client import Client, OptiqClientError
from optiq_core.base import EMBEDDED
from optiq_core.errors import OptiqError

START_SECONDS = 180.0
STOP_SECONDS = 30.0
SHARED = ("OPTIQ_CACHE", "OPTIQ_EMBEDDED_WHEEL")


class DemoError(OptiqError):
    """The demo did not show what it is meant to show."""


class DaemonHost:
    """A daemon in a temporary home.

    Args:
        options: further flags of `optiq serve`.
        model: the base.
        settings: further settings by key, for those that have no flag.
    """

    def __init__(self, *options: str, model: str = EMBEDDED, settings: Mapping[str, str] | None = None) -> None:
        self._options = options
        self._model = model
        self._environment = {f"OPTIQ_{key.upper()}": value for key, value in (settings or {}).items()}
        self.home = Path(tempfile.mkdtemp(prefix="optiq-demo-"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def drop_folder(self) -> Path:
        """Where adapters of the default tenant are dropped."""
        return self.home / "adapters" / "default"

    def start(self) -> Client:
        """Start the daemon and wait until it serves.

        Raises:
            DemoError: it did not come up; the message ends with its log.
        """
        log = (self.home / "demo-daemon.log").open("wb")
        command = [sys.executable, "-m", "optiq_daemon", "serve", "--home", str(self.home)]
        # The user's own settings are for the user's daemon; only the caches are shared.
        kept = {key: value for key, value in os.environ.items() if not key.startswith("OPTIQ_") or key in SHARED}
        with log:
            # A session of its own: Ctrl-C in the demo's terminal must not reach it before the demo has cleaned up.
            self._process = subprocess.Popen(
                [*command, "--model", self._model, *self._options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**kept, **self._environment, "OPTIQ_CONFIG": str(self.home / "config.toml")},
            )
        client = Client(home=self.home)
        try:
            client.wait_ready(START_SECONDS)
        except OptiqClientError as error:
            raise DemoError(f"the daemon did not start: {error}\n{self._log_tail()}") from error
        return client

    def stop(self) -> None:
        """End the daemon gently, then remove its home."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self.home, ignore_errors=True)

    @property
    def pid(self) -> int:
        """Process id of the daemon."""
        return self._process.pid if self._process else 0

    def _log_tail(self) -> str:
        logs = [self.home / "demo-daemon.log", self.home / "logs" / "engine.log"]
        tails = [log.read_text(errors="replace").splitlines()[-10:] for log in logs if log.exists()]
        return "\n".join(line for tail in tails for line in tail)
