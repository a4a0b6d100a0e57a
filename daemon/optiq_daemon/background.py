"""A daemon in the background: starting it, waiting for it, stopping it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from optiq_client import paths
from optiq_core.errors import OptiqError
from optiq_daemon.config import Settings

POLL_S = 0.1


class BackgroundError(OptiqError):
    """A daemon that did not start or stop."""


def running_pid(home: Path) -> int:
    """Process id of the daemon that serves `home`; 0 if none does. The lock decides, not the pid file."""
    try:
        with paths.lock_path(home).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(OSError, ValueError):
            return int(paths.pid_path(home).read_text())
        return -1
    except OSError:
        return 0
    return 0


def spawn(settings: Settings, arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start `optiq serve` detached from this terminal.

    Raises:
        BackgroundError: one is running.
    """
    home = settings.home_path
    if pid := running_pid(home):
        raise BackgroundError(f"a daemon (pid {pid}) serves {home} already")
    log = paths.logs_path(home) / "start.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "optiq_daemon", "serve", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def wait_until_serving(settings: Settings, process: subprocess.Popen[bytes], seconds: float) -> int:
    """Wait until the daemon's health is SERVING; returns its process id.

    Raises:
        BackgroundError: it ended, or did not serve in time.
    """
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    until = time.monotonic() + seconds
    with grpc.insecure_channel(f"unix:{paths.socket_path(settings.home_path)}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while time.monotonic() < until:
            if process.poll() is not None:
                log = paths.logs_path(settings.home_path) / "start.log"
                raise BackgroundError(f"the daemon ended with exit code {process.returncode}: {_last_line(log)}")
            with contextlib.suppress(grpc.RpcError):
                answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return process.pid
            time.sleep(POLL_S)
    raise BackgroundError(f"the daemon (pid {process.pid}) does not serve after {seconds:g} s; it goes on trying")


def stop_daemon(home: Path, seconds: float) -> int:
    """Stop the daemon of `home` and wait for its end; returns its process id, 0 if none ran.

    Raises:
        BackgroundError: it did not end in time.
    """
    pid = running_pid(home)
    if pid <= 0:
        return 0
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + seconds
    while running_pid(home) == pid:
        if time.monotonic() > until:
            raise BackgroundError(f"the daemon (pid {pid}) has not stopped after {seconds:g} s; it is still draining")
        time.sleep(POLL_S)
    return pid


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("Error: ") if lines else "it said nothing"
