"""What the tests of the HTTP gateway share: a daemon with it, and what it is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optiq_core
from optiq_client import AdapterState, Client
from tests.integration.conftest import Daemon, eventually, free_port

BASE = "optiq/embedded"
PIRATE = Path(optiq_core.__file__).parent / "experiments" / "ready" / "pirate"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
# Long enough to be interrupted.
STORY = [{"role": "user", "content": "Tell me a very long story."}]


@contextmanager
def daemon_with_gateway() -> Iterator[Daemon]:
    """A daemon with two rows, the gateway, and one adapter."""
    options = ("--max-batch", "2", "--max-queue", "2", "--max-tokens", "6", "--port", str(free_port()))
    daemon = Daemon(*options, "--adapter", str(PIRATE))
    try:
        with daemon.start() as client:
            assert eventually(lambda: client.adapters.get("pirate").state is AdapterState.RESIDENT)
        yield daemon
        assert daemon.stop() == 0, daemon.output()
    finally:
        daemon.remove()


def free(client: Client) -> bool:
    """Whether nothing runs."""
    status = client.runtime.status()
    return not status.requests and status.engine.active_rows == 0
