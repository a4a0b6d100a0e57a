"""`optiq daemon`, mounts at start, full queues, and what the log shows."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from optiq_client import AdapterState, Chunk, Client, HealthStatus, ResourceExhausted
from tests.adapters import write_adapter
from tests.integration.conftest import Daemon, eventually

PROMPT = "the purple elephant"


def optiq(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OPTIQ_") or k == "OPTIQ_CACHE"}
    environment["OPTIQ_HOME"] = str(daemon.home)
    command = [sys.executable, "-m", "optiq_daemon", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)


def test_start_status_and_stop_with_an_adapter_mounted(another_daemon: Callable[..., Daemon]) -> None:
    daemon = another_daemon()
    source = write_adapter(daemon.home / "My_Adapter", seed=70)
    assert optiq(daemon, "daemon", "status").returncode == 3
    assert optiq(daemon, "daemon", "stop").returncode == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    tcp = ("--max-batch", "1", "--max-queue", "1", "--address", address)
    started = optiq(daemon, "daemon", "start", "--adapter", str(source), "--adapter", f"second={source}", *tcp)
    assert started.returncode == 0, started.stderr
    try:
        status = json.loads(optiq(daemon, "daemon", "status", "--json").stdout)
        assert status["running"] and status["home"] == str(daemon.home)
        again = optiq(daemon, "daemon", "start")
        assert again.returncode == 1 and f"pid {status['pid']}" in again.stderr
        with Client(address) as client:
            assert client.health() is HealthStatus.SERVING
        with Client(home=daemon.home) as client:
            assert {adapter.id: adapter.state for adapter in client.adapters.list()} == {
                "my-adapter": AdapterState.RESIDENT,
                "second": AdapterState.RESIDENT,
            }
            check_full_queue(client)
            check_log(daemon, status["pid"])
    finally:
        assert optiq(daemon, "daemon", "stop").returncode == 0
    assert optiq(daemon, "daemon", "status").returncode == 3


def check_full_queue(client: Client) -> None:
    """With one row and one place, the third request is told when to come back."""
    begun = threading.Semaphore(0)
    streams = [client.generate(PROMPT, max_tokens=400) for _ in range(2)]

    def read(number: int) -> None:
        for event in streams[number].events():
            if isinstance(event, Chunk) or number == 1:
                begun.release()

    threads = [threading.Thread(target=read, args=(number,), daemon=True) for number in range(2)]
    threads[0].start()
    begun.acquire(timeout=30)
    threads[1].start()
    assert eventually(lambda: len(client.runtime.status().requests) == 2)
    with pytest.raises(ResourceExhausted) as caught:
        client.generate(PROMPT, max_tokens=1).read()
    assert caught.value.retry_after and caught.value.reason == "QUEUE_FULL"
    for stream in streams:
        stream.cancel()
    assert eventually(lambda: not client.runtime.status().requests)
    assert client.generate(PROMPT, max_tokens=1).read() is not None


def check_log(daemon: Daemon, pid: int) -> None:
    """SIGUSR1 writes stacks; prompts are nowhere."""
    log = daemon.home / "logs" / "daemon.log"
    os.kill(pid, signal.SIGUSR1)
    assert eventually(lambda: "SIGUSR1: tasks" in log.read_text())
    assert "task health" in log.read_text() and "thread MainThread" in log.read_text()
    for file in (daemon.home / "logs").iterdir():
        assert "elephant" not in file.read_text()
