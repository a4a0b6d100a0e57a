"""What the dashboard looks like. `pytest tests/tui --snapshot-update` takes new pictures after a wanted change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from textual.pilot import Pilot

from optiq_tui import connection
from optiq_tui.settings import Settings
from tests.tui import scene
from tests.tui.conftest import ADDRESS, make_app, until
from tests.tui.fake_daemon import FakeDaemonThread
from tests.tui.steps import STEPS, Step, app_of, connecting, settled

IDS = [f"{width}x{height}" for width, height in scene.SIZES]


@pytest.fixture
def empty() -> Iterator[FakeDaemonThread]:
    """A daemon that has just been started for the first time. It has a loop of its own: snapshots end theirs."""
    with FakeDaemonThread(ADDRESS) as thread:
        thread.do(lambda: thread.daemon.put_status(scene.status(requests=False)))
        yield thread


@pytest.fixture
def daemon(empty: FakeDaemonThread) -> FakeDaemonThread:
    """The same with the whole scene."""
    empty.do(lambda: scene.fill_all(empty.daemon))
    return empty


def after(step: Step) -> Step:
    """Wait for the whole scene first."""

    async def run(pilot: Pilot[None]) -> None:
        await settled(pilot)
        await step(pilot)

    return run


def keys(*pressed: str) -> Step:
    """Press keys."""

    async def run(pilot: Pilot[None]) -> None:
        await pilot.press(*pressed)
        await pilot.pause(0.3)

    return run


async def idle(pilot: Pilot[None]) -> None:
    """Wait for the empty daemon."""
    await until(lambda: app_of(pilot).view.known)
    await pilot.pause(0.5)


async def nobody(pilot: Pilot[None]) -> None:
    """Wait for the first failed try."""
    await until(lambda: app_of(pilot).screen.has_class("-welcome") and bool(app_of(pilot).view.link.detail))
    await pilot.pause(0.2)


# The wide ones take twice as long; the narrow ones find what is broken as well.
@pytest.mark.parametrize(
    "size",
    [pytest.param(size, marks=pytest.mark.slow if size != (80, 24) else ()) for size in scene.SIZES],
    ids=IDS,
)
@pytest.mark.parametrize("name", list(STEPS))
def test_screen(snap_compare: Any, daemon: FakeDaemonThread, name: str, size: tuple[int, int]) -> None:
    assert snap_compare(make_app(), terminal_size=size, run_before=after(STEPS[name]))


@pytest.mark.parametrize("key", ["1", "2", "3", "4", "5"])
def test_first_run(snap_compare: Any, empty: FakeDaemonThread, key: str) -> None:
    async def step(pilot: Pilot[None]) -> None:
        await idle(pilot)
        await keys(key)(pilot)

    assert snap_compare(make_app(), terminal_size=(80, 24), run_before=step)


def test_no_daemon(snap_compare: Any) -> None:
    assert snap_compare(make_app(), terminal_size=(80, 24), run_before=nobody)


def test_connecting(snap_compare: Any, empty: FakeDaemonThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "DIAL_TIMEOUT", 60.0)
    empty.daemon.silent = True
    assert snap_compare(make_app(), terminal_size=(80, 24), run_before=connecting)


def test_refused(snap_compare: Any, daemon: FakeDaemonThread) -> None:
    daemon.daemon.refuse_token = True
    assert snap_compare(make_app(), terminal_size=(80, 24), run_before=nobody)


def test_daemon_lost(snap_compare: Any, daemon: FakeDaemonThread) -> None:
    async def step(pilot: Pilot[None]) -> None:
        daemon.stop()
        await until(lambda: app_of(pilot).screen.has_class("-stale"))
        await pilot.pause(0.3)

    assert snap_compare(make_app(), terminal_size=(80, 24), run_before=after(step))


def test_light_and_compact(snap_compare: Any, daemon: FakeDaemonThread) -> None:
    app = make_app(settings=Settings(theme="optiq-light", compact=True))
    assert snap_compare(app, terminal_size=(80, 24), run_before=after(keys("2")))


def test_without_colours(snap_compare: Any, daemon: FakeDaemonThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert snap_compare(make_app(), terminal_size=(80, 24), run_before=after(keys("3")))


def test_help(snap_compare: Any, daemon: FakeDaemonThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTIQ_TUI_CONFIG", "tui.toml")
    assert snap_compare(make_app(), terminal_size=(80, 24), run_before=after(keys("4", "question_mark")))


def test_too_small(snap_compare: Any, daemon: FakeDaemonThread) -> None:
    assert snap_compare(make_app(), terminal_size=(60, 20), run_before=after(keys("1")))
