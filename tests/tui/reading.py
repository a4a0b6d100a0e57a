"""What tests read from a screen, and two names of the scene."""

from __future__ import annotations

from textual.containers import Vertical
from textual.widgets import Static

from optiq_tui.app import OptiqApp

ROMAN = "tenants/default/adapters/roman"


RUNNING = "tenants/default/jobs/units-0004"


def text_of(app: OptiqApp, selector: str) -> str:
    """Text of a static widget."""
    return str(app.screen.query_one(selector, Static).render())


def title_of(app: OptiqApp, selector: str) -> str:
    """Text on the frame of a panel."""
    return str(app.screen.query_one(selector, Vertical).border_title)
