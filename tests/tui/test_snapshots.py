"""What the dashboard looks like. `pytest tests/tui --snapshot-update` takes new pictures after a wanted change."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from textual.pilot import Pilot

from tests.tui import scene
from tests.tui.conftest import ADDRESS, make_app, until
from tests.tui.fake_daemon import FakeDaemon

SIZES = [(80, 24), (200, 60)]


def steps(
    daemon: FakeDaemon | None, *keys: str, fill: bool = True, away: bool = False
) -> Callable[[Pilot[None]], Awaitable[None]]:
    """What happens before the picture: the daemon comes up, everything arrives, keys are pressed."""

    async def run(pilot: Pilot[None]) -> None:
        app: Any = pilot.app
        if daemon is None:
            await until(lambda: "optiq serve" in str(app.dashboard.welcome.render()))
            return
        if fill:
            scene.fill(daemon)
        else:
            daemon.put_status(scene.status(requests=False))
        await daemon.start(ADDRESS)
        app.connection.retry()
        await until(lambda: app.dashboard.link_bar.has_class("-connected"))
        if fill:
            await until(lambda: app.dashboard.jobs.table.row_count == 4 and app.dashboard.events.table.row_count == 9)
            await until(lambda: len(app.connection.feed.curves.get("tenants/default/jobs/units-0004", ())) == 38)
        else:
            await until(lambda: app.dashboard.jobs.has_class("-empty"))
        await pilot.press(*keys)
        if away:
            await daemon.stop()
            await until(lambda: app.dashboard.has_class("-stale"))
        await pilot.pause(0.4)

    return run


@pytest.fixture
def daemon() -> FakeDaemon:
    """A daemon that the snapshot's own event loop starts."""
    return FakeDaemon()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_adapters(snap_compare: Any, daemon: FakeDaemon, size: tuple[int, int]) -> None:
    assert snap_compare(make_app(), terminal_size=size, run_before=steps(daemon, "down"))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_jobs(snap_compare: Any, daemon: FakeDaemon, size: tuple[int, int]) -> None:
    assert snap_compare(make_app(), terminal_size=size, run_before=steps(daemon, "2"))


def test_requests(snap_compare: Any, daemon: FakeDaemon) -> None:
    assert snap_compare(make_app(), terminal_size=(80, 24), run_before=steps(daemon, "3"))


def test_events(snap_compare: Any, daemon: FakeDaemon) -> None:
    assert snap_compare(make_app(), terminal_size=(80, 24), run_before=steps(daemon, "4"))


def test_confirm(snap_compare: Any, daemon: FakeDaemon) -> None:
    assert snap_compare(make_app(), terminal_size=(80, 24), run_before=steps(daemon, "2", "x"))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_first_run(snap_compare: Any, daemon: FakeDaemon, size: tuple[int, int]) -> None:
    assert snap_compare(make_app(), terminal_size=size, run_before=steps(daemon, fill=False))


def test_no_daemon(snap_compare: Any) -> None:
    assert snap_compare(make_app(), terminal_size=(80, 24), run_before=steps(None))


def test_daemon_lost(snap_compare: Any, daemon: FakeDaemon) -> None:
    assert snap_compare(make_app(), terminal_size=(80, 24), run_before=steps(daemon, away=True))


def test_too_small(snap_compare: Any, daemon: FakeDaemon) -> None:
    assert snap_compare(make_app(), terminal_size=(60, 20), run_before=steps(daemon))
