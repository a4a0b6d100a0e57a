"""What each screen shows and does."""

from __future__ import annotations

from textual.widgets import Input

from optiq_protos.v1 import adapter_pb2, event_pb2, training_pb2
from optiq_tui.screens.adapters import Adapters
from optiq_tui.screens.confirm import Confirm
from optiq_tui.screens.events import Events
from optiq_tui.screens.jobs import Jobs
from optiq_tui.screens.overview import Overview
from optiq_tui.screens.playground import Playground
from optiq_tui.screens.submit import Submit
from optiq_tui.view import LanePhase, PlanStage
from tests.tui import scene
from tests.tui.conftest import make_app, until
from tests.tui.fake_daemon import FakeDaemon
from tests.tui.reading import ROMAN, RUNNING, text_of, title_of
from tests.tui.steps import current, go, settled


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
        assert "one batch of 5 rows with 4 adapters · 1 queued" in title_of(app, "#requests")
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
