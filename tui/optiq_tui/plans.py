"""Plans the job that is being written, as it is written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from optiq_client import AsyncClient, OptiqClientError, TrainingConfig
from optiq_tui.feed import Feed
from optiq_tui.view import PlanStage, PlanState

STILL_SECONDS = 0.6


class Plans:
    """Keeps the feed's plan that of the newest configuration; one that is not wanted any more is given up.

    Args:
        feed: where the plan goes.
        client: the connected client; raises ConnectionFailed if there is none.
    """

    def __init__(self, feed: Feed, client: Callable[[], AsyncClient]) -> None:
        self._feed = feed
        self._client = client
        self._task: asyncio.Task[None] | None = None

    def want(self, config: TrainingConfig | None) -> None:
        """Plan this once it has not changed for a moment; None drops the plan."""
        self.stop()
        if config is None:
            self._feed.set_plan(PlanState())
            return
        self._feed.set_plan(PlanState(PlanStage.PLANNING, config, self._feed.view.plan.plan))
        self._task = asyncio.create_task(self._plan(config))

    def stop(self) -> None:
        """Give up the plan that is being made."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _plan(self, config: TrainingConfig) -> None:
        await asyncio.sleep(STILL_SECONDS)
        try:
            plan = await self._client().training.plan(config)
        except OptiqClientError as error:
            self._feed.set_plan(PlanState(PlanStage.FAILED, config, error=str(error)))
        else:
            self._feed.set_plan(PlanState(PlanStage.READY, config, plan))
