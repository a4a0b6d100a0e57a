"""From streams to views: what the connection tells the screens, before anything is drawn."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType

from optiq_protos.v1 import event_pb2, training_pb2
from optiq_tui.connection import Connection
from optiq_tui.messages import LaneWanted, Look, PlanWanted, PlayWanted, ViewChanged
from optiq_tui.view import LanePhase, Link, Part, PlanStage, View
from tests.tui import scene
from tests.tui.conftest import ADDRESS, until
from tests.tui.fake_daemon import FakeDaemon

ROMAN = "tenants/default/adapters/roman"
SUPPORT = "tenants/default/routes/support"


class Listener:
    """A connection without an application: keeps the messages."""

    def __init__(self) -> None:
        self.messages: list[ViewChanged] = []
        self.connection = Connection(
            ADDRESS, "default", self.messages.append, now=lambda: scene.NOW, retry_delays=(0.2,)
        )

    @property
    def view(self) -> View:
        """The newest view that was posted."""
        return self.messages[-1].view if self.messages else View()

    def links(self) -> list[Link]:
        """States of the link, as they were posted."""
        return [m.view.link.link for m in self.messages if Part.LINK in m.parts]

    async def __aenter__(self) -> Listener:
        self._task = asyncio.create_task(self.connection.run())
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_a_view_holds_the_scene(daemon: FakeDaemon) -> None:
    async with Listener() as listener:
        await until(lambda: listener.view.known and len(listener.view.jobs) == 4 and len(listener.view.events) == 9)
        await until(lambda: [a.id for a in listener.view.adapters][-1:] == ["units"])
        await until(lambda: len(listener.view.curves.get("tenants/default/jobs/units-0004", ())) == 38)
        assert [a.id for a in listener.view.adapters] == ["haiku", "legal-summaries", "roman", "sql-notes", "units"]
        assert listener.links()[0] is Link.CONNECTED or listener.links()[:2] == [Link.CONNECTING, Link.CONNECTED]
        assert listener.view.trends.tokens_per_second[-1] == 33.0
        assert len(listener.view.trends.queued) == len(scene.past()) + 1


async def test_changes_arrive_by_themselves(daemon: FakeDaemon) -> None:
    async with Listener() as listener:
        await until(lambda: len(listener.view.adapters) == 5 and bool(listener.view.jobs))
        daemon.drop_adapter(ROMAN)
        await until(lambda: ROMAN not in {a.name for a in listener.view.adapters})
        new = scene.job(6, "fresh", training_pb2.JOB_STATE_QUEUED, age=0)
        daemon.put_job(new)
        daemon.put_event(event_pb2.Event(revision=10, type="job.created", resource=new.name))
        await until(lambda: new.name in {j.name for j in listener.view.jobs})


async def test_only_what_is_looked_at_is_read(daemon: FakeDaemon) -> None:
    async with Listener() as listener:
        await until(lambda: len(listener.view.adapters) == 5)
        await asyncio.sleep(0.3)
        assert not listener.view.routing.routes
        assert listener.view.detail is None
        listener.connection.look(Look(routing=True, route=SUPPORT, adapter=ROMAN))
        await until(lambda: listener.view.routing.detail is not None)
        await until(lambda: listener.view.detail is not None)
        assert [t.id for t in listener.view.routing.tenants] == ["default", "acme", "lab"]
        detail = listener.view.routing.detail
        assert detail is not None
        assert [d.target for d in detail.decisions][:2] == ["legal-summaries@v4", "legal-summaries@v3"]
        known = listener.view.detail
        assert known is not None
        assert [v.number for v in known.versions] == [3, 2, 1]
        assert known.ranks["model.layers.0.self_attn.q_proj"] == 16
        assert known.ranks["model.layers.3.self_attn.q_proj"] == 8


async def test_an_ended_job_s_curve_is_read_when_it_is_looked_at(daemon: FakeDaemon) -> None:
    name = "tenants/default/jobs/roman-0002"
    async with Listener() as listener:
        await until(lambda: len(listener.view.jobs) == 4)
        assert name not in listener.view.curves
        listener.connection.look(Look(jobs=(name,)))
        await until(lambda: len(listener.view.curves.get(name, ())) == 60)


async def test_a_flood_is_coalesced(daemon: FakeDaemon) -> None:
    async with Listener() as listener:
        await until(lambda: len(listener.view.adapters) == 5)
        await asyncio.sleep(0.3)
        before, started = len(listener.messages), time.monotonic()
        for number in range(2000):
            status = scene.status()
            status.engine.generated_tokens = number
            daemon.put_status(status)
            daemon.put_adapter(daemon.adapters[ROMAN])
            if number % 100 == 0:
                await asyncio.sleep(0.01)
        await until(lambda: listener.view.status is not None and listener.view.status.engine.generated_tokens == 1999)
        elapsed = time.monotonic() - started
        # At most ten views a second, whatever comes.
        assert len(listener.messages) - before <= elapsed * 10 + 2


async def test_a_view_never_changes(daemon: FakeDaemon) -> None:
    async with Listener() as listener:
        await until(lambda: len(listener.view.adapters) == 5 and len(listener.view.events) == 9)
        old = listener.view
        daemon.drop_adapter(ROMAN)
        daemon.put_event(event_pb2.Event(revision=10, type="adapter.deleted", resource=ROMAN))
        await until(lambda: len(listener.view.adapters) == 4 and len(listener.view.events) == 10)
        assert (len(old.adapters), len(old.events)) == (5, 9)


async def test_reconnects_and_misses_no_event(daemon: FakeDaemon) -> None:
    async with Listener() as listener:
        await until(lambda: len(listener.view.events) == 9 and listener.view.known)
        await daemon.stop()
        await until(lambda: Link.LOST in listener.links())
        assert listener.view.known, "the last picture stays"
        assert not listener.view.live
        daemon.events.append(event_pb2.Event(revision=10, type="engine.restarted", message="while away"))
        await daemon.start(ADDRESS)
        await until(lambda: listener.view.live)
        await until(lambda: len(listener.view.events) == 10)
        assert [e.revision for e in listener.view.events] == list(range(1, 11))


async def test_a_refused_token_is_told_apart_from_a_lost_daemon(daemon: FakeDaemon) -> None:
    daemon.refuse_token = True
    async with Listener() as listener:
        await until(lambda: listener.view.link.link is Link.REFUSED)
        assert listener.view.link.detail == "the token is not known"
        assert not listener.view.known
        daemon.refuse_token = False
        await until(lambda: listener.view.live)


async def test_compacted_history_is_no_error(daemon: FakeDaemon) -> None:
    del daemon.events[:5]
    async with Listener() as listener:
        await until(lambda: len(listener.view.adapters) == 5)
        await asyncio.sleep(0.2)
        daemon.put_event(event_pb2.Event(revision=10, type="daemon.serving"))
        await until(lambda: [e.revision for e in listener.view.events] == [10])
        assert Link.LOST not in listener.links()


async def test_only_the_newest_plan_counts(daemon: FakeDaemon) -> None:
    from optiq_client import TrainingConfig

    async with Listener() as listener:
        await until(lambda: listener.view.live)
        for rank in (1, 16, 32):
            listener.connection.plan(PlanWanted(TrainingConfig(data_path="/data", rank=rank)))
        await until(lambda: listener.view.plan.stage is PlanStage.READY)
        assert listener.view.plan.plan is not None
        assert listener.view.plan.plan.resource_limit == 499_000
        planned = [call for call in daemon.calls if isinstance(call, training_pb2.PlanTrainingJobRequest)]
        assert [call.config.rank for call in planned] == [32]
        daemon.plan = None
        listener.connection.plan(PlanWanted(TrainingConfig(data_path="/data", rank=64)))
        await until(lambda: listener.view.plan.stage is PlanStage.FAILED)
        assert "engine" in listener.view.plan.error
        listener.connection.plan(PlanWanted(None))
        await until(lambda: listener.view.plan.stage is PlanStage.NONE)


async def test_answers_come_side_by_side(daemon: FakeDaemon) -> None:
    lanes = (LaneWanted("base"), LaneWanted("roman", {"roman": 1.0}), LaneWanted("both", {"roman": 0.7, "units": 0.3}))
    async with Listener() as listener:
        await until(lambda: listener.view.live)
        listener.connection.play(PlayWanted("14?", lanes, max_tokens=9))
        await until(lambda: [lane.phase for lane in listener.view.lanes] == [LanePhase.DONE] * 3)
        asked = [call for call in daemon.calls if hasattr(call, "max_tokens")]
        assert sorted(call.adapter for call in asked) == ["", "", "roman"]
        blend = next(call for call in asked if call.adapters)
        assert {part.name: part.weight for part in blend.adapters} == {"roman": 0.7, "units": 0.3}
        assert listener.view.lanes[1].text == "XXIII"
        assert listener.view.lanes[1].ttft_ms == 41.5


async def test_answers_stop_and_fail_apart(daemon: FakeDaemon) -> None:
    daemon.piece_delay = 5.0
    async with Listener() as listener:
        await until(lambda: listener.view.live)
        listener.connection.play(PlayWanted("14?", (LaneWanted("gone", {"gone": 1.0}), LaneWanted("base"))))
        await until(lambda: [lane.phase for lane in listener.view.lanes] == [LanePhase.FAILED, LanePhase.RUNNING])
        assert "no adapter" in listener.view.lanes[0].note
        listener.connection.play(PlayWanted("", ()))
        await until(lambda: listener.view.lanes[1].phase is LanePhase.STOPPED)
        await until(lambda: daemon.cancelled_generations == 1)
