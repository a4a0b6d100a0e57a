"""What the dashboard says where not all is well: no daemon, a refused token, too small a terminal, hostile text."""

from __future__ import annotations

from textual.widgets import Input

from optiq_protos.v1 import event_pb2, runtime_pb2, training_pb2
from optiq_tui.screens.adapters import Adapters
from optiq_tui.screens.overview import Overview
from optiq_tui.screens.playground import Playground
from tests.tui import scene
from tests.tui.conftest import ADDRESS, make_app, until
from tests.tui.fake_daemon import FakeDaemon
from tests.tui.reading import text_of
from tests.tui.steps import current, go, settled


async def test_survives_the_daemon_going_away(daemon: FakeDaemon) -> None:
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await go(pilot, "2")
        await pilot.press("down", "down", "slash", *"rom")
        assert isinstance(app.screen, Adapters)
        await daemon.stop()
        await until(lambda: app.screen.has_class("-stale"))
        assert "daemon lost · as of 15:09:26" in text_of(app, "#link")
        assert [a.id for a in app.screen.table.rows] == ["roman"]
        await pilot.press("escape", "l")
        await until(lambda: any("not connected" in n.message for n in app._notifications))
        await daemon.start(ADDRESS)
        await until(lambda: not app.screen.has_class("-stale"))
        assert app.screen.query_one("#adapters-filter", Input).value == "rom", "what was typed is kept"
        assert "connected" in text_of(app, "#link")


async def test_waits_for_a_daemon_that_is_not_there_yet() -> None:
    app = make_app()
    async with app.run_test(size=(80, 24)):
        await until(lambda: "optiq serve" in text_of(app, "#welcome"))
        assert "no Optiq daemon answers at unix:run/daemon.sock" in text_of(app, "#welcome")
        late = FakeDaemon()
        late.put_status(scene.status(requests=False))
        await late.start(ADDRESS)
        await until(lambda: not app.screen.has_class("-welcome"))
        drop = "/home/ada/.local/share/optiq/adapters/default/NAME"
        assert isinstance(app.screen, Overview)
        assert drop in app.screen.residents.empty_text.plain
        assert "optiq jobs submit" in app.screen.residents.empty_text.plain
        await late.stop()


async def test_a_refused_token_says_what_to_do(daemon: FakeDaemon) -> None:
    daemon.refuse_token = True
    app = make_app()
    async with app.run_test(size=(80, 24)):
        await until(lambda: "OPTIQ_TOKEN" in text_of(app, "#welcome"))
        assert "refused" in text_of(app, "#link")


async def test_an_engine_that_restarts_is_announced(daemon: FakeDaemon) -> None:
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert not app.screen.query_one("#notice").display
        status = scene.status()
        status.engine.state = runtime_pb2.ENGINE_STATE_RESTARTING
        status.engine.message = "[b]killed by signal 9[/]"
        daemon.put_status(status)
        await until(lambda: app.screen.query_one("#notice").display)
        assert "engine restarting: [b]killed by signal 9[/]" in text_of(app, "#notice")


async def test_readonly_offers_no_action(daemon: FakeDaemon) -> None:
    app = make_app(readonly=True)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await go(pilot, "2")
        await pilot.press("down", "down", "l", "p", "b", "4", "x", "n", "5", "e", *"hello", "ctrl+g")
        await current(pilot)
        assert daemon.calls == []
        assert isinstance(app.screen, Playground)


async def test_too_small_a_terminal_says_so(daemon: FakeDaemon) -> None:
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.resize_terminal(60, 20)
        await pilot.pause()
        assert not app.screen.query_one("#main").display
        assert "needs 80 x 24" in text_of(app, "#too-small")
        assert "60 x 20" in text_of(app, "#too-small")


async def test_hostile_text_is_shown_as_it_is(daemon: FakeDaemon) -> None:
    nasty = "[red]boom[/] [@click=app.quit]x[/] [unclosed"
    daemon.put_event(event_pb2.Event(revision=10, time=scene.ago(1), type="engine.failed", message=nasty))
    job = scene.job(7, "nasty", training_pb2.JOB_STATE_FAILED, age=1, reason=nasty)
    daemon.jobs = {job.name: job, **daemon.jobs}
    app = make_app()
    async with app.run_test(size=(200, 60)) as pilot:
        await until(lambda: app.connection.feed.last_revision == 10 and len(app.view.jobs) == 5)
        await pilot.press("4")
        await current(pilot)
        assert nasty in text_of(app, "#job-facts")
        await pilot.press("6")
        await current(pilot)
        assert nasty in text_of(app, "#event-text")
