"""The dashboard against a daemon in this process: messages and state first."""

from __future__ import annotations

import asyncio
import time

import pytest
from textual.message import Message
from textual.widgets import Static

from optiq_client import AdapterState, JobState
from optiq_protos.v1 import adapter_pb2, event_pb2, runtime_pb2, training_pb2
from optiq_tui.app import OptiqApp
from optiq_tui.connection import Connection
from optiq_tui.messages import AdaptersArrived, EventsArrived, JobsArrived, Link, LinkChanged, StatusArrived
from optiq_tui.screens.confirm import Confirm
from optiq_tui.screens.dashboard import Dashboard
from tests.tui import scene
from tests.tui.conftest import ADDRESS, make_app, until
from tests.tui.fake_daemon import FakeDaemon

ROMAN = "tenants/default/adapters/roman"


class Listener:
    """A connection without a screen, and what it posted."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.connection = Connection(ADDRESS, "default", self.messages.append, retry_delays=(0.1, 0.2))
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Listener:
        self._task = asyncio.create_task(self.connection.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._task

    def of(self, kind: type[Message]) -> list[Message]:
        return [m for m in self.messages if isinstance(m, kind)]

    def links(self) -> list[Link]:
        return [m.link for m in self.messages if isinstance(m, LinkChanged)]


def text_of(app: OptiqApp, selector: str) -> str:
    return str(app.screen.query_one(selector, Static).render())


def panel_text(app: OptiqApp, name: str) -> str:
    """All the cells of a panel's table."""
    table = getattr(app.dashboard, name).table
    return "\n".join(" ".join(str(c) for c in table.get_row_at(i)) for i in range(table.row_count))


async def test_the_connection_posts_the_whole_picture(daemon: FakeDaemon) -> None:
    async with Listener() as listener:
        await until(lambda: all(listener.of(k) for k in (StatusArrived, AdaptersArrived, JobsArrived, EventsArrived)))
        assert listener.links() == [Link.CONNECTING, Link.CONNECTED]
        adapters = listener.of(AdaptersArrived)[-1]
        assert isinstance(adapters, AdaptersArrived)
        assert [a.id for a in adapters.adapters] == ["haiku", "legal-summaries", "roman", "sql-notes", "units"]
        await until(lambda: len(listener.connection.feed.curves.get("tenants/default/jobs/units-0004", ())) == 38)
        await until(lambda: listener.connection.feed.last_revision == 9)


async def test_changes_arrive_by_themselves(daemon: FakeDaemon) -> None:
    async with Listener() as listener:
        feed = listener.connection.feed
        await until(lambda: len(feed.adapters) == 5 and bool(feed.jobs))
        daemon.drop_adapter(ROMAN)
        await until(lambda: ROMAN not in feed.adapters)
        new = scene.job(6, "fresh", training_pb2.JOB_STATE_QUEUED, age=0)
        daemon.put_job(new)
        daemon.put_event(event_pb2.Event(revision=10, type="job.created", resource=new.name))
        await until(lambda: new.name in feed.jobs)


async def test_a_flood_is_coalesced(daemon: FakeDaemon) -> None:
    async with Listener() as listener:
        await until(lambda: len(listener.connection.feed.adapters) == 5)
        await asyncio.sleep(0.3)
        before, started = len(listener.messages), time.monotonic()
        for number in range(2000):
            status = scene.status()
            status.engine.generated_tokens = number
            daemon.put_status(status)
            daemon.put_adapter(daemon.adapters[ROMAN])
            if number % 100 == 0:
                await asyncio.sleep(0.01)

        def seen() -> bool:
            return listener.connection.feed.status is not None and (
                listener.connection.feed.status.engine.generated_tokens == 1999
            )

        await until(seen)
        await asyncio.sleep(0.15)
        elapsed = time.monotonic() - started
        # Four parts, each at most ten times a second.
        assert len(listener.messages) - before <= 4 * (elapsed * 10 + 2)
        assert len(listener.messages) - before < 400


async def test_reconnects_and_misses_no_event(daemon: FakeDaemon) -> None:
    async with Listener() as listener:
        feed = listener.connection.feed
        await until(lambda: feed.last_revision == 9)
        await daemon.stop()
        await until(lambda: Link.LOST in listener.links())
        daemon.events.append(event_pb2.Event(revision=10, type="engine.restarted", message="while away"))
        await daemon.start(ADDRESS)
        await until(lambda: listener.links()[-1] is Link.CONNECTED)
        await until(lambda: feed.last_revision == 10)
        assert [e.revision for e in feed.events] == list(range(1, 11))


async def test_compacted_history_is_no_error(daemon: FakeDaemon) -> None:
    del daemon.events[:5]
    async with Listener() as listener:
        await until(lambda: len(listener.connection.feed.adapters) == 5)
        await asyncio.sleep(0.2)
        daemon.put_event(event_pb2.Event(revision=10, type="daemon.serving"))
        await until(lambda: listener.connection.feed.last_revision == 10)
        assert Link.LOST not in listener.links()


async def test_the_screen_shows_the_scene(daemon: FakeDaemon) -> None:
    app = make_app()
    async with app.run_test(size=(200, 60)) as pilot:
        await until(lambda: app.dashboard.jobs.table.row_count == 4 and app.dashboard.events.table.row_count == 9)
        await pilot.pause(0.2)
        assert "roman ● resident" in panel_text(app, "adapters")
        assert "haiku ✖ quarantined" in panel_text(app, "adapters")
        assert "38/60" in panel_text(app, "jobs")
        assert "prefill" in panel_text(app, "requests")
        assert "adapter.quarantined haiku" in panel_text(app, "events")
        assert "found [512, 8]" in text_of(app, "#adapter-detail")
        assert "connected · up 3h25m" in text_of(app, "#link")
        assert "≤4" in text_of(app, "#load")


async def test_loss_grows_live(daemon: FakeDaemon) -> None:
    app = make_app()
    async with app.run_test(size=(200, 60)):
        await until(lambda: app.dashboard.jobs.table.row_count == 4)
        job = training_pb2.TrainingJob()
        job.CopyFrom(daemon.jobs["tenants/default/jobs/units-0004"])
        await until(lambda: "38/60" in panel_text(app, "jobs"))
        job.progress.CopyFrom(scene.running_progress(39))
        daemon.put_job(job, report=True)
        await until(lambda: "39/60" in panel_text(app, "jobs"))
        await until(lambda: len(app.connection.feed.curves[job.name]) == 39)


async def test_the_curve_of_an_ended_job_is_read_when_it_is_looked_at(daemon: FakeDaemon) -> None:
    name = "tenants/default/jobs/roman-0002"
    daemon.progress[name] = [scene.running_progress(step) for step in range(1, 61)]
    app = make_app()
    async with app.run_test(size=(200, 60)) as pilot:
        await until(lambda: app.dashboard.jobs.table.row_count == 4)
        await pilot.press("2", "down", "down", "down")
        await until(lambda: len(app.connection.feed.curves.get(name, ())) == 60)


async def test_survives_the_daemon_going_away(daemon: FakeDaemon) -> None:
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await until(lambda: app.dashboard.adapters.table.row_count == 5)
        await pilot.press("down", "down")
        assert app.dashboard.adapters.selected is not None
        assert app.dashboard.adapters.selected.id == "roman"
        await daemon.stop()
        await until(lambda: app.dashboard.has_class("-stale"))
        assert "daemon lost · as of 15:09:26" in text_of(app, "#link")
        assert "roman" in panel_text(app, "adapters")
        await pilot.press("l")
        await until(lambda: any("not connected" in n.message for n in app._notifications))
        daemon.put_adapter(scene.adapter("zebra", adapter_pb2.ADAPTER_STATE_AVAILABLE))
        await daemon.start(ADDRESS)
        await until(lambda: not app.dashboard.has_class("-stale"))
        await until(lambda: app.dashboard.adapters.table.row_count == 6)
        assert app.dashboard.adapters.selected.id == "roman"
        assert "connected" in text_of(app, "#link")


async def test_waits_for_a_daemon_that_is_not_there_yet() -> None:
    app = make_app()
    async with app.run_test(size=(80, 24)):
        await until(lambda: "optiq serve" in text_of(app, "#welcome"))
        assert "no Optiq daemon answers at unix:run/daemon.sock" in text_of(app, "#welcome")
        late = FakeDaemon()
        late.put_status(scene.status(requests=False))
        await late.start(ADDRESS)
        await until(lambda: not app.dashboard.has_class("-welcome"))
        await until(lambda: app.dashboard.adapters.has_class("-empty"))
        drop = "/home/ada/.local/share/optiq/adapters/default/NAME"
        await until(lambda: drop in str(app.dashboard.adapters.empty.render()))
        assert "optiq jobs submit" in str(app.dashboard.adapters.empty.render())
        assert "optiq generate" in str(app.dashboard.requests.empty.render())
        await late.stop()


async def test_load_and_unload(daemon: FakeDaemon) -> None:
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await until(lambda: app.dashboard.adapters.table.row_count == 5)
        await pilot.press("down", "down", "l")
        await until(lambda: daemon.adapters[ROMAN].state == adapter_pb2.ADAPTER_STATE_AVAILABLE)
        await until(lambda: app.connection.feed.adapters[ROMAN].state is AdapterState.AVAILABLE)
        await pilot.pause(0.3)
        await pilot.press("l")
        await until(lambda: daemon.adapters[ROMAN].state == adapter_pb2.ADAPTER_STATE_RESIDENT)


async def test_cancel_asks_first(daemon: FakeDaemon) -> None:
    job = "tenants/default/jobs/units-0004"
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await until(lambda: app.dashboard.jobs.table.row_count == 4)
        await pilot.press("2", "x")
        assert isinstance(app.screen, Confirm)
        await pilot.press("n")
        assert daemon.jobs[job].state == training_pb2.JOB_STATE_RUNNING
        await pilot.press("x", "y")
        await until(lambda: daemon.jobs[job].state == training_pb2.JOB_STATE_CANCELLED)
        await until(lambda: app.connection.feed.jobs[job].state is JobState.CANCELLED)
        assert isinstance(app.screen, Dashboard)


async def test_readonly_offers_no_action(daemon: FakeDaemon) -> None:
    app = make_app(readonly=True)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(lambda: app.dashboard.adapters.table.row_count == 5)
        await pilot.press("down", "l", "2", "x")
        await pilot.pause(0.2)
        assert daemon.calls == []
        assert isinstance(app.screen, Dashboard)
        actions = {b.binding.action for b in app.screen.active_bindings.values() if b.enabled}
        assert not {"toggle_load", "cancel_job"} & actions


async def test_panels_by_key_and_by_width(daemon: FakeDaemon) -> None:
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await until(lambda: app.dashboard.adapters.table.row_count == 5)
        shown = lambda: [p.id for p in app.dashboard.query(".panel") if p.display]  # noqa: E731
        assert shown() == ["adapters"]
        await pilot.press("4")
        assert shown() == ["events"]
        await pilot.press("tab")
        assert shown() == ["adapters"]
        await pilot.press("shift+tab", "shift+tab")
        assert shown() == ["requests"]
        await pilot.click("#tabs", offset=(18, 0))
        assert shown() == ["jobs"]
        await pilot.resize_terminal(200, 60)
        await pilot.pause()
        assert len(shown()) == 4
        await pilot.resize_terminal(60, 20)
        await pilot.pause()
        assert not app.dashboard.query_one("#main").display
        assert "needs 80 x 24" in text_of(app, "#too-small")
        assert "60 x 20" in text_of(app, "#too-small")


async def test_hostile_text_is_shown_as_it_is(daemon: FakeDaemon) -> None:
    nasty = "[red]boom[/] [@click=app.quit]x[/] [unclosed"
    status = scene.status()
    status.engine.message = nasty
    status.engine.state = runtime_pb2.ENGINE_STATE_FAILED
    daemon.put_status(status)
    daemon.put_event(event_pb2.Event(revision=10, time=scene.ago(1), type="engine.failed", message=nasty))
    app = make_app()
    async with app.run_test(size=(200, 60)) as pilot:
        await until(lambda: app.dashboard.events.table.row_count == 10)
        await pilot.pause(0.2)
        assert nasty in panel_text(app, "events")
        assert nasty in text_of(app, "#overview-title")


def test_no_key_clashes_with_terminals_and_multiplexers() -> None:
    keys = {
        key.strip()
        for bindings in (OptiqApp.BINDINGS, Dashboard.BINDINGS, Confirm.BINDINGS)
        for binding in bindings
        for key in binding.key.split(",")  # type: ignore[union-attr]
    }
    assert not keys & {"ctrl+b", "ctrl+a", "ctrl+s", "ctrl+q", "ctrl+z"}
    for bindings in (OptiqApp.BINDINGS, Dashboard.BINDINGS, Confirm.BINDINGS):
        for binding in bindings:
            assert binding.id, binding  # type: ignore[union-attr]
            assert binding.tooltip, binding  # type: ignore[union-attr]
