"""A real daemon with the embedded model, in a home of its own, as any user starts it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from optiq_client import Client, DeadlineExceeded, NotFound

if TYPE_CHECKING:
    import anthropic
    import openai

T = TypeVar("T")


class Daemon:
    """`optiq serve` in a temporary home; Unix sockets need its path to be short."""

    def __init__(self, *options: str) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="optiq-"))
        self.drop = self.home / "adapters" / "default"
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Of its gateway, if it was given a port."""
        return f"http://127.0.0.1:{self.options[self.options.index('--port') + 1]}"

    def start(self, *, wait: bool = True) -> Client:
        """Start it; again after it ended is fine."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("OPTIQ_") or k == "OPTIQ_CACHE"}
        environment["OPTIQ_CALIBRATION"] = str(self.home / "calibration.json")
        environment["OPTIQ_CONFIG"] = str(self.home / "config.toml")
        with (self.home / "output.log").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "optiq_daemon", "serve", "--home", str(self.home), *self.options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
            )
        client = Client(home=self.home)
        if wait:
            self._wait_ready(client, time.monotonic() + 180)
        return client

    def _wait_ready(self, client: Client, deadline: float) -> None:
        assert self.process is not None
        while True:
            try:
                client.wait_ready(2)
                return
            except DeadlineExceeded:
                # A daemon that ended says why in its output; waiting for it would only hide that.
                assert self.process.poll() is None, self.output()
                if time.monotonic() > deadline:
                    raise

    def stop(self, number: int = signal.SIGTERM, timeout: float = 60) -> int:
        """End it; returns the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout)

    def output(self) -> str:
        """What it printed."""
        return (self.home / "output.log").read_text()

    def remove(self) -> None:
        """End it and remove its home."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.home, ignore_errors=True)


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    """One daemon for all tests that leave it running."""
    running = Daemon("--max-tokens", "8")
    try:
        running.start()
        yield running
        assert running.stop() == 0, running.output()
    finally:
        running.remove()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny random base as a folder, written by a process that may import MLX."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    code = "import pathlib, sys, tests.unit.tiny as tiny; tiny.save_tiny_base(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, timeout=120)
    return folder


@pytest.fixture(scope="session")
def tiny_daemon(tiny_folder: Path) -> Iterator[Daemon]:
    """One daemon over the tiny base, with room for a few adapters only, for tests that leave it running."""
    options = ("--model", str(tiny_folder), "--settle-ms", "100", "--keep-versions", "3", "--drain-seconds", "1")
    running = Daemon(*options)
    try:
        running.start()
        yield running
        assert running.stop() == 0, running.output()
    finally:
        running.remove()


@pytest.fixture
def tiny_client(tiny_daemon: Daemon) -> Iterator[Client]:
    """A client of the daemon over the tiny base."""
    with Client(home=tiny_daemon.home) as made:
        made.wait_ready(60)
        yield made


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    """A client of the session's daemon, which serves again by now."""
    with Client(home=daemon.home) as made:
        made.wait_ready(120)
        yield made


@pytest.fixture(scope="module")
def gateway() -> Iterator[Daemon]:
    """A daemon with the HTTP gateway, for the tests of one module."""
    from tests.integration.gateway_parts import daemon_with_gateway

    with daemon_with_gateway() as daemon:
        yield daemon


@pytest.fixture
def url(gateway: Daemon) -> str:
    """Where the module's gateway is; a module with another gateway has a fixture of its own."""
    return gateway.url


@pytest.fixture
def grpc_client(gateway: Daemon) -> Iterator[Client]:
    """A client of the daemon behind the gateway."""
    with Client(home=gateway.home) as client:
        yield client


@pytest.fixture
def gpt(url: str) -> Iterator[openai.OpenAI]:
    """OpenAI's client of the gateway at `url`."""
    import openai

    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(url: str) -> Iterator[anthropic.Anthropic]:
    """Anthropic's client of the same gateway."""
    import anthropic

    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def another_daemon() -> Iterator[Callable[..., Daemon]]:
    """Makes daemons for tests that end them."""
    made: list[Daemon] = []

    def make(*options: str) -> Daemon:
        made.append(Daemon(*options))
        return made[-1]

    yield make
    for one in made:
        one.remove()


def eventually(look: Callable[[], T], timeout: float = 20.0, *, every: float = 0.02) -> T:
    """The first true result of `look`; the last one when the time is over. NotFound counts as not yet."""
    until = time.monotonic() + timeout
    while True:
        try:
            found = look()
        except NotFound:
            if time.monotonic() > until:
                raise
        else:
            if found or time.monotonic() > until:
                return found
        time.sleep(every)


def gone(look: Callable[[], object], timeout: float = 30.0) -> bool:
    """Whether `look` comes to raise NotFound."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        try:
            look()
        except NotFound:
            return True
        time.sleep(0.02)
    return False


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
