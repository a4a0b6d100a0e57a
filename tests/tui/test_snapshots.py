"""What the dashboard looks like. `pytest tests/tui --snapshot-update` takes new pictures after a wanted change."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from textual.pilot import Pilot

from tests.tui import scene
from tests.tui.conftest import ADDRESS, make_app, until
from tests.tui.fake_daemon import FakeDaemonThread

SIZES = [(80, 24), (200, 60)]
Before = Callable[[Pilot[None]], Awaitable[None]]


@pytest.fixture
def empty() -> Iterator[FakeDaemonThread]:
    """A daemon that has just been started for the first time. It has a loop of its own: snapshots end theirs."""
    with FakeDaemonThread(ADDRESS) as thread:
        thread.do(lambda: thread.daemon.put_status(scene.status(requests=False)))
        yield thread


@pytest.fixture
def daemon(empty: FakeDaemonThread) -> FakeDaemonThread:
    """The same with the whole scene."""
    empty.do(lambda: scene.fill(empty.daemon))
    return empty


def busy(*keys: str, then: Callable[[], None] | None = None) -> Before:
    """Wait for the whole scene, press keys, and let something happen."""

    async def run(pilot: Pilot[None]) -> None:
        app: Any = pilot.app
        await until(lambda: app.dashboard.jobs.table.row_count == 4 and app.dashboard.events.table.row_count == 9)
        await until(lambda: len(app.connection.feed.curves.get("tenants/default/jobs/units-0004", ())) == 38)
        await until(lambda: app.dashboard.adapters.table.row_count == 5)
        await until(lambda: app.dashboard.requests.table.row_count == 6)
        await pilot.press(*keys)
        if then is not None:
            then()
            await until(lambda: app.dashboard.has_class("-stale"))
        await pilot.pause(0.4)

    return run


async def idle(pilot: Pilot[None]) -> None:
    """Wait for the empty daemon."""
    app: Any = pilot.app
    await until(lambda: app.connection.feed.status is not None and app.dashboard.jobs.has_class("-empty"))
    await until(lambda: app.dashboard.adapters.has_class("-empty"))
    await pilot.pause(0.4)


async def nobody(pilot: Pilot[None]) -> None:
    """Wait for the first failed try."""
    app: Any = pilot.app
    await until(lambda: "optiq serve" in str(app.dashboard.welcome.render()))


@pytest.mark.parametrize("size", SIZES, ids=["80x24", "200x60"])
def test_adapters(snap_compare: Any, daemon: FakeDaemonThread, size: tuple[int, int]) -> None:
    assert snap_compare(make_app(), terminal_size=size, run_before=busy("down"))


@pytest.mark.parametrize("size", SIZES, ids=["80x24", "200x60"])
def test_jobs(snap_compare: Any, daemon: FakeDaemonThread, size: tuple[int, int]) -> None:
    assert snap_compare(make_app(), terminal_size=size, run_before=busy("2"))


def test_requests(snap_compare: Any, daemon: FakeDaemonThread) -> None:
    assert snap_compare(make_app(), terminal_size=(80, 24), run_before=busy("3"))


def test_events(snap_compare: Any, daemon: FakeDaemonThread) -> None:
    assert snap_compare(make_app(), terminal_size=(80, 24), run_before=busy("4"))


def test_confirm(snap_compare: Any, daemon: FakeDaemonThread) -> None:
    assert snap_compare(make_app(), terminal_size=(80, 24), run_before=busy("2", "x"))


@pytest.mark.parametrize("size", SIZES, ids=["80x24", "200x60"])
def test_first_run(snap_compare: Any, empty: FakeDaemonThread, size: tuple[int, int]) -> None:
    assert snap_compare(make_app(), terminal_size=size, run_before=idle)


def test_no_daemon(snap_compare: Any) -> None:
    assert snap_compare(make_app(), terminal_size=(80, 24), run_before=nobody)


def test_daemon_lost(snap_compare: Any, daemon: FakeDaemonThread) -> None:
    assert snap_compare(make_app(), terminal_size=(80, 24), run_before=busy(then=daemon.stop))


def test_too_small(snap_compare: Any, daemon: FakeDaemonThread) -> None:
    assert snap_compare(make_app(), terminal_size=(60, 20), run_before=busy())
