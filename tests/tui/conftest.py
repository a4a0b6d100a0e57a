"""Fixtures of the dashboard's tests: a daemon at an address that is the same everywhere, and an app on it."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from optiq_tui.app import OptiqApp
from optiq_tui.settings import Settings
from tests.tui import scene
from tests.tui.fake_daemon import FakeDaemon

# Snapshots show the address, so it must not depend on where the tests run.
ADDRESS = "unix:run/daemon.sock"


@pytest.fixture(autouse=True)
def _short_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run in a folder of our own: Unix socket paths are short, and the address is relative to it."""
    # pytest-textual-snapshot reads and writes relative to the working directory only at the end.
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "run").mkdir()
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


@pytest.fixture
async def daemon() -> AsyncIterator[FakeDaemon]:
    """A daemon with the whole scene, serving."""
    made = FakeDaemon()
    scene.fill_all(made)
    await made.start(ADDRESS)
    yield made
    await made.stop()


def make_app(*, readonly: bool = False, settings: Settings | None = None) -> OptiqApp:
    """The dashboard with a frozen clock and quick retries."""
    return OptiqApp(ADDRESS, readonly=readonly, settings=settings, now=lambda: scene.NOW, retry_delays=(0.2,))


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for a condition; fails with its source line if it never holds."""
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"did not happen within {seconds} s")
