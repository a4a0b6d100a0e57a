"""The dashboard with a clock on its keys."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from textual import events
from textual.screen import Screen

from optiq_tui.app import OptiqApp
from optiq_tui.messages import ViewChanged
from optiq_tui.widgets.table import Table


class ProbedApp(OptiqApp):
    """Counts paints, and says when a move of the cursor has been painted.

    Attributes:
        frames: paints so far.
        lost: views that came without a connection.
    """

    CSS_PATH = str(Path(__file__).parents[1] / "optiq.tcss")
    frames = 0
    lost = 0
    _moved = False

    def probe(self) -> None:
        """Watch the cursor of the focused table."""
        table = self.screen.focused
        assert isinstance(table, Table)
        self._painted = asyncio.Event()
        move = table.action_move

        def moved(step: int) -> None:
            move(step)
            self._moved = True

        table.action_move = moved  # type: ignore[method-assign]

    async def move(self, key: str) -> float:
        """Send a key that moves the cursor; the time of the paint that showed it, in seconds of the monotonic clock."""
        self._painted.clear()
        self.post_message(events.Key(key, None))
        await self._painted.wait()
        return self._painted_at

    def on_view_changed(self, message: ViewChanged) -> None:
        """Beside the dashboard's own handler, which Textual calls as well."""
        self.lost += not message.view.live

    def _display(self, screen: Screen[Any], renderable: RenderableType | None) -> None:
        super()._display(screen, renderable)
        self.frames += 1
        if self._moved:
            self._moved = False
            self._painted_at = time.perf_counter()
            self._painted.set()
