"""What the screens do: keys, actions, states, and what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from textual.containers import Vertical
from textual.widgets import Input, Static

from optiq_protos.v1 import adapter_pb2, event_pb2, runtime_pb2, training_pb2
from optiq_tui.app import OptiqApp
from optiq_tui.cli import tui
from optiq_tui.keys import all_keys
from optiq_tui.screens import BOARDS
from optiq_tui.screens.adapters import Adapters
from optiq_tui.screens.confirm import Confirm
from optiq_tui.screens.events import Events
from optiq_tui.screens.help import Help
from optiq_tui.screens.jobs import Jobs
from optiq_tui.screens.overview import Overview
from optiq_tui.screens.playground import Playground
from optiq_tui.screens.submit import Submit
from optiq_tui.settings import Settings, SettingsError, read_settings
from optiq_tui.view import LanePhase, PlanStage
from tests.tui import scene
from tests.tui.conftest import ADDRESS, make_app, until
from tests.tui.fake_daemon import FakeDaemon
from tests.tui.steps import current, go, settled

ROMAN = "tenants/default/adapters/roman"
RUNNING = "tenants/default/jobs/units-0004"
FLOW_CONTROL_AND_PREFIXES = {"ctrl+b", "ctrl+a", "ctrl+s", "ctrl+q", "ctrl+z"}


def text_of(app: OptiqApp, selector: str) -> str:
    """Text of a static widget."""
    return str(app.screen.query_one(selector, Static).render())


def title_of(app: OptiqApp, selector: str) -> str:
    """Text on the frame of a panel."""
    return str(app.screen.query_one(selector, Vertical).border_title)


async def test_the_overview_shows_engine_ceilings_and_load(daemon: FakeDaemon) -> None:
    app = make_app()
    async with app.run_test(size=(200, 60)) as pilot:
        await settled(pilot)
        assert isinstance(app.screen, Overview)
        assert "serving" in text_of(app, "#engine-text")
        assert "≤4 adapters in a step" in text_of(app, "#engine-text")
        assert "1.9 of 8.0 GiB" in text_of(app, "#gauge-process")
        assert "9.0 of 512 MiB" in text_of(app, "#gauge-adapters")
        assert "1.3 of 6.0 GiB" in text_of(app, "#gauge-training")
        assert "18.2 of 499 K" in text_of(app, "#gauge-buffers")
        assert "33.0" in title_of(app, "#speed")
        assert [a.id for a in app.screen.residents.rows] == ["roman", "units", "legal-summaries"]
        assert "38/60" in text_of(app, "#training-text")
        assert "connected · up 3h25m" in text_of(app, "#link")


async def test_screens_by_key_by_click_and_by_palette(daemon: FakeDaemon) -> None:
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        for number, board in enumerate(BOARDS.values(), start=1):
            await pilot.press(str(number))
            assert type(app.screen) is board
        await pilot.click("#tabs", offset=(15, 0))
        assert isinstance(app.screen, Adapters)
        await pilot.press("ctrl+p", *"go to events")
        await pilot.pause(0.5)
        await pilot.press("down", "enter")
        await until(lambda: isinstance(app.screen, Events))


async def test_the_palette_offers_what_can_be_done_here(daemon: FakeDaemon) -> None:
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        here = {command.title for command in app.get_system_commands(app.screen)}
        assert "Pin" not in here
        await pilot.press("2")
        there = {command.title for command in app.get_system_commands(app.screen)}
        assert {"Pin", "Load", "Roll back", "Theme"} <= there


async def test_adapters_are_filtered_and_letters_are_text_there(daemon: FakeDaemon) -> None:
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await go(pilot, "2")
        await pilot.press("slash", *"q 2")
        assert isinstance(app.screen, Adapters)
        box = app.screen.query_one("#adapters-filter", Input)
        assert box.value == "q 2"
        assert app.screen.table.row_count == 0
        box.value = "QUARANTINED lora"
        await pilot.pause()
        assert [a.id for a in app.screen.table.rows] == ["haiku"]
        await pilot.press("enter")
        assert app.screen.focused is app.screen.table
        await pilot.press("slash", "escape")
        assert app.screen.focused is app.screen.table
        facts = text_of(app, "#adapter-facts")
        assert "SHAPE_MISMATCH" in facts
        assert "[512, 8]" in facts
        assert "model.layers.3.self_attn.q_proj.lora_a" in facts


async def test_an_adapter_s_detail(daemon: FakeDaemon) -> None:
    app = make_app()
    async with app.run_test(size=(200, 60)) as pilot:
        await settled(pilot)
        await go(pilot, "2")
        await pilot.press("down", "down")
        await until(lambda: "v3" in text_of(app, "#adapter-history"))
        assert "592 in all" in title_of(app, "#adapter-ranks")
        await until(lambda: "routes   numbers" in text_of(app, "#adapter-facts"))
        assert "req-7f3a01 (default)" in text_of(app, "#adapter-facts")


async def test_load_unload_and_pin(daemon: FakeDaemon) -> None:
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await go(pilot, "2")
        await pilot.press("down", "down", "l")
        await until(lambda: daemon.adapters[ROMAN].state == adapter_pb2.ADAPTER_STATE_AVAILABLE)
        await until(lambda: "available" in text_of(app, "#adapter-facts"))
        await pilot.press("l")
        await until(lambda: daemon.adapters[ROMAN].state == adapter_pb2.ADAPTER_STATE_RESIDENT)
        await pilot.press("p")
        await until(lambda: not daemon.adapters[ROMAN].pinned)


async def test_roll_back_chooses_a_version(daemon: FakeDaemon) -> None:
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await go(pilot, "2")
        await pilot.press("down", "down")
        await until(lambda: app.view.detail is not None and len(app.view.detail.versions) == 3)
        await pilot.press("b", "down", "enter")
        await until(lambda: daemon.adapters[ROMAN].version == 1)


async def test_routing_says_why(daemon: FakeDaemon) -> None:
    app = make_app()
    async with app.run_test(size=(200, 60)) as pilot:
        await settled(pilot)
        await pilot.press("3")
        await until(lambda: len(app.view.routing.routes) == 2)
        assert "one batch of 5 rows, 4 adapters decode together · 1 queued" in title_of(app, "#requests")
        await pilot.press("tab", "down")
        await until(lambda: "fallback: legal-summaries@v4 is loading" in text_of(app, "#route-text"))
        assert "The lease ends 30 days after notice." in text_of(app, "#route-text")
        await pilot.press("o")
        assert isinstance(app.screen, Confirm)
        await pilot.press("y")
        await until(lambda: [c.target for c in daemon.routing.calls] == ["legal-summaries@v5"])


async def test_jobs_show_plan_log_and_curves(daemon: FakeDaemon) -> None:
    app = make_app()
    async with app.run_test(size=(200, 60)) as pilot:
        await settled(pilot)
        await pilot.press("4")
        assert isinstance(app.screen, Jobs)
        assert "1.3 of 6.0 GiB" in text_of(app, "#job-facts")
        assert "step   38" in text_of(app, "#job-log-text")
        assert "started  " in text_of(app, "#job-facts")
        await until(lambda: "of 118 examples" in text_of(app, "#job-log-text"))
        job = training_pb2.TrainingJob()
        job.CopyFrom(daemon.jobs[RUNNING])
        job.progress.CopyFrom(scene.running_progress(39))
        daemon.put_job(job, report=True)
        await until(lambda: "step   39" in text_of(app, "#job-log-text"))
        await pilot.press("down")
        await until(lambda: "of 118 examples" not in text_of(app, "#job-log-text"))
        assert "priority +5" in text_of(app, "#job-facts") and "after    units-0004" in text_of(app, "#job-facts")
        await pilot.press("up", "space", "down", "down", "down")
        await until(lambda: app.connection.feed.points("tenants/default/jobs/roman-0002") == 60)
        await current(pilot)
        assert [label for label in app.screen.chart._labels if label] == ["roman-0002", "units-0004"]


async def test_cancel_asks_first(daemon: FakeDaemon) -> None:
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await go(pilot, "4")
        await pilot.press("x")
        assert isinstance(app.screen, Confirm)
        await pilot.press("n")
        assert daemon.jobs[RUNNING].state == training_pb2.JOB_STATE_RUNNING
        await pilot.press("x", "y")
        await until(lambda: daemon.jobs[RUNNING].state == training_pb2.JOB_STATE_CANCELLED)
        await until(lambda: isinstance(app.screen, Jobs))


async def test_pause_and_resume(daemon: FakeDaemon) -> None:
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await go(pilot, "4")
        await pilot.press("p")
        await until(lambda: "paused" in text_of(app, "#job-facts"))
        await pilot.press("p")
        await until(lambda: "queued" in text_of(app, "#job-facts"))
        assert [type(call).__name__ for call in daemon.calls] == ["PauseTrainingJobRequest", "ResumeTrainingJobRequest"]


async def test_the_form_plans_as_it_is_typed_and_queues(daemon: FakeDaemon) -> None:
    daemon.plan = scene.plan(fits=False)
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await go(pilot, "4")
        await pilot.press("n", *"tone", "tab", *"/data", "tab", *"x")
        assert isinstance(app.screen, Submit)
        assert "expected a whole number from 1, found 'x'" in text_of(app, "#submit-plan-text")
        assert app.screen.query_one("#field-rank").has_class("-wrong")
        await pilot.press("backspace", *"32")
        await until(lambda: app.view.plan.stage is PlanStage.READY)
        await until(lambda: "recompute activations" in text_of(app, "#submit-plan-text"))
        assert "does not fit" in text_of(app, "#submit-plan-text")
        await pilot.press("ctrl+g")
        await until(lambda: any(job.adapter_id == "tone" and job.config.rank == 32 for job in daemon.jobs.values()))
        await until(lambda: isinstance(app.screen, Jobs))


async def test_the_playground_asks_all_at_once(daemon: FakeDaemon) -> None:
    app = make_app()
    async with app.run_test(size=(200, 60)) as pilot:
        await settled(pilot)
        await go(pilot, "5")
        await pilot.press("down", "down", "space", "down", "down", "space", "m", "tab", "right", "right")
        assert isinstance(app.screen, Playground)
        await pilot.press("e", *"XIV?", "ctrl+g")
        await until(lambda: [lane.phase for lane in app.view.lanes] == [LanePhase.DONE] * 4)
        assert [lane.title for lane in app.view.lanes] == ["base", "roman", "units", "0.6 roman + 0.5 units"]
        await until(lambda: "3 adapters shared one step" in title_of(app, "#play-answers"))


async def test_events_are_filtered_and_held_still(daemon: FakeDaemon) -> None:
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await go(pilot, "6")
        await pilot.press("t")
        assert isinstance(app.screen, Events)
        assert {e.type.partition(".")[0] for e in app.screen.table.rows} == {"adapter"}
        await pilot.press(*"tttttt", "f")
        daemon.put_event(event_pb2.Event(revision=10, time=scene.ago(1), type="daemon.serving", message="ready"))
        await until(lambda: app.connection.feed.last_revision == 10)
        await current(pilot)
        assert app.screen.table.row_count == 9
        await pilot.press("f")
        assert app.screen.table.row_count == 10
        assert app.screen.table.selected is not None


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


async def test_help_is_about_what_has_the_focus(daemon: FakeDaemon) -> None:
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await go(pilot, "2")
        await pilot.press("question_mark")
        assert isinstance(app.screen, Help)
        assert "A table." in app.screen._what
        assert "adapters.pin" in {binding.id for _, _, binding in app.screen._rows}
        await pilot.press("escape")
        assert isinstance(app.screen, Adapters)


async def test_keys_are_remapped_by_id(daemon: FakeDaemon) -> None:
    app = make_app(settings=Settings(keys={"screen.events": "f6", "adapters.pin": "g"}))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("6")
        assert isinstance(app.screen, Overview)
        await pilot.press("f6")
        assert isinstance(app.screen, Events)
        await go(pilot, "2")
        await pilot.press("down", "down", "g")
        await until(lambda: not daemon.adapters[ROMAN].pinned)


async def test_themes_and_density(daemon: FakeDaemon) -> None:
    app = make_app(settings=Settings(theme="optiq-light", compact=True))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert not app.current_theme.dark
        assert app.screen.query_one("#residents").styles.border_left[0] in {"", "none"}
        await pilot.press("c")
        assert app.screen.query_one("#residents").styles.border_left[0] == "round"


def test_every_key_has_an_id_and_none_clashes() -> None:
    keys = all_keys()
    used = {key.strip() for entry in keys for key in entry.keys.split(",")}
    assert not used & FLOW_CONTROL_AND_PREFIXES
    assert all(entry.what for entry in keys)
    ids = [entry.id for entry in keys]
    assert len(ids) == len(set(ids))


def test_the_settings_file_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "tui.toml"
    ids = {key.id for key in all_keys()}
    assert read_settings(file, ids) == Settings()
    file.write_text('theme = "optiq-light"\n[keys]\n"screen.jobs" = "f4,4"\n')
    assert read_settings(file, ids).keys == {"screen.jobs": "f4,4"}
    for content, said in (
        ('[keys]\n"screen.job" = "f4"\n', "did you mean 'screen.jobs'"),
        ('[keys]\n"screen.jobs" = ","\n', "empty key"),
        ("colour = 1\n", "colour"),
        ("compact = 3\n", "compact"),
        ("not toml", str(file)),
    ):
        file.write_text(content)
        with pytest.raises(SettingsError, match=r".*") as raised:
            read_settings(file, ids)
        assert said in str(raised.value)


def test_the_command_lists_its_keys() -> None:
    result = CliRunner().invoke(tui, ["--keys", "--json"])
    assert result.exit_code == 0
    assert {"id": "screen.jobs", "keys": "4", "what": "Go to jobs", "where": "OptiqApp"} in json.loads(result.stdout)
    assert "jobs.cancel" in CliRunner().invoke(tui, ["--keys"]).stdout
    refused = CliRunner().invoke(tui, ["--theme", "no-such-theme", "--address", ADDRESS])
    assert refused.exit_code == 1
    assert "no-such-theme" in refused.stderr


async def test_thousands_of_adapters_keep_the_cursor(daemon: FakeDaemon) -> None:
    for number in range(5_000):
        item = scene.adapter(f"bulk-{number}", adapter_pb2.ADAPTER_STATE_AVAILABLE)
        daemon.adapters[item.name] = item
    app = make_app()
    async with app.run_test(size=(200, 60)) as pilot:
        await until(lambda: len(app.view.adapters) == 5_005)
        await go(pilot, "2")
        await pilot.press("end")
        assert isinstance(app.screen, Adapters)
        await until(lambda: app.screen.table.selected is not None and app.screen.table.selected.id == "units")
        daemon.put_adapter(scene.adapter("zz-last", adapter_pb2.ADAPTER_STATE_AVAILABLE))
        await until(lambda: app.screen.table.row_count == 5_006)
        assert app.screen.table.selected.id == "units"
