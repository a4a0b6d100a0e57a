"""Screens of the dashboard: one module each."""

from __future__ import annotations

from typing import Any

from textual.screen import Screen

from optiq_tui.screens.adapters import Adapters
from optiq_tui.screens.board import Board
from optiq_tui.screens.choose import Choose
from optiq_tui.screens.confirm import Confirm
from optiq_tui.screens.events import Events
from optiq_tui.screens.help import Help
from optiq_tui.screens.jobs import Jobs
from optiq_tui.screens.overview import Overview
from optiq_tui.screens.playground import Playground
from optiq_tui.screens.routing import Routing
from optiq_tui.screens.submit import Submit

BOARDS: dict[str, type[Board]] = {
    "overview": Overview,
    "adapters": Adapters,
    "routing": Routing,
    "jobs": Jobs,
    "playground": Playground,
    "events": Events,
}
"""The screens by name, in the order of their keys."""

CLASSES: tuple[type[Screen[Any]], ...] = (Board, *BOARDS.values(), Choose, Confirm, Help, Submit)
"""Every class of screens that has keys."""
