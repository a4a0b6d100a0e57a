"""How tests and pictures bring a screen to where there is something to see."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import cast

from textual.pilot import Pilot

from optiq_tui.app import OptiqApp
from optiq_tui.view import LanePhase, PlanStage
from optiq_tui.widgets.table import Table
from tests.tui import scene
from tests.tui.conftest import until

Step = Callable[[Pilot[None]], Awaitable[None]]


def app_of(pilot: Pilot[None]) -> OptiqApp:
    """The pilot's app."""
    return cast(OptiqApp, pilot.app)


async def settled(pilot: Pilot[None]) -> None:
    """The whole scene has arrived."""
    feed = app_of(pilot).connection.feed
    samples = len(scene.past()) + 1
    await until(lambda: len(feed.adapters) == 5 and len(feed.jobs) == 4 and feed.last_revision == 9)
    await until(lambda: feed.points("tenants/default/jobs/units-0004") == 38)
    await until(lambda: len(feed.view.trends.rows) == samples)
    await current(pilot)


async def current(pilot: Pilot[None]) -> None:
    """What has arrived is on the screen."""
    feed = app_of(pilot).connection.feed
    await until(lambda: not feed._dirty.is_set() and app_of(pilot).view is feed.view)
    await pilot.pause(0.1)


async def go(pilot: Pilot[None], key: str) -> None:
    """Go to a screen, and wait until its list has the keys."""
    await pilot.press(key)
    await until(lambda: isinstance(app_of(pilot).screen.focused, Table))


async def connecting(pilot: Pilot[None]) -> None:
    """Somebody takes the call, and has not answered yet."""
    await until(lambda: app_of(pilot).screen.has_class("-welcome") and bool(app_of(pilot).view.link.address))
    await pilot.pause(0.2)


async def _overview(pilot: Pilot[None]) -> None:
    await pilot.pause()


async def _adapters(pilot: Pilot[None]) -> None:
    await go(pilot, "2")
    await pilot.press("down", "down")
    feed = app_of(pilot).connection.feed
    await until(lambda: feed.view.detail is not None and feed.view.detail.name.endswith("/roman"))
    await pilot.pause(0.4)


async def _routing(pilot: Pilot[None]) -> None:
    feed = app_of(pilot).connection.feed
    await go(pilot, "3")
    await until(lambda: len(feed.view.routing.routes) == 2)
    await pilot.press("tab", "down")
    await until(lambda: feed.view.routing.detail is not None and len(feed.view.routing.detail.shadows) == 3)
    await pilot.pause(0.4)


async def _jobs(pilot: Pilot[None]) -> None:
    feed = app_of(pilot).connection.feed
    await go(pilot, "4")
    await pilot.press("space", "down", "down", "down")
    await until(lambda: feed.points("tenants/default/jobs/roman-0002") == 60)
    await pilot.press("up", "up", "up")
    await pilot.press("down", "down", "down", "space", "up", "up", "up")
    await pilot.pause(0.5)


async def _submit(pilot: Pilot[None]) -> None:
    await go(pilot, "4")
    await pilot.press("n", *"tone", "tab", *"/home/ada/data/tone", "tab", *"16")
    feed = app_of(pilot).connection.feed
    await until(lambda: feed.view.plan.plan is not None and feed.view.plan.stage is PlanStage.READY)
    await pilot.pause(0.4)


async def _playground(pilot: Pilot[None]) -> None:
    feed = app_of(pilot).connection.feed
    await go(pilot, "5")
    await pilot.press("down", "down", "space", "down", "down", "space", "m", "e")
    await pilot.press(*"What is XIV plus 9", "ctrl+g")
    await until(lambda: [lane.phase for lane in feed.view.lanes] == [LanePhase.DONE] * 4)
    await pilot.press("escape")
    await pilot.pause(0.5)


async def _events(pilot: Pilot[None]) -> None:
    await go(pilot, "6")
    await pilot.press("down")
    await pilot.pause(0.4)


STEPS: dict[str, Step] = {
    "overview": _overview,
    "adapters": _adapters,
    "routing": _routing,
    "jobs": _jobs,
    "submit": _submit,
    "playground": _playground,
    "events": _events,
}
"""Where each screen's picture is taken."""
