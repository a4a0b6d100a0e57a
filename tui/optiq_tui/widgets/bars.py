"""One-line widgets: the strip of tabs, and the state of the connection."""

from __future__ import annotations

from datetime import datetime

from textual.widgets import Static

from optiq_client import Status, humanize
from optiq_tui.messages import Link, LinkChanged

PANELS = {"adapters": "Adapters", "jobs": "Jobs", "requests": "Requests", "events": "Events"}


class TabStrip(Static):
    """Names of the panels, where only one of them has room."""

    def show(self, active: str) -> None:
        """Mark the active panel."""
        parts = []
        for number, (name, title) in enumerate(PANELS.items(), start=1):
            style = "[b reverse]" if name == active else "[dim]"
            parts.append(f"[@click=screen.panel('{name}')]{style} {number} {title} [/][/]")
        self.update(" ".join(parts))


class LinkBar(Static):
    """Says whether what is shown is live."""

    def show(self, change: LinkChanged, status: Status | None, seen: datetime | None, now: datetime) -> None:
        """Show the connection's state.

        Args:
            change: the state.
            status: last known status.
            seen: when it was current.
            now: for the daemon's age.
        """
        self.set_class(change.link is Link.LOST, "-lost")
        self.set_class(change.link is Link.CONNECTED, "-connected")
        if change.link is Link.CONNECTED:
            up = f" · up {humanize.since(status.start_time, now)}" if status and status.start_time else ""
            self.update(f"● connected{up} · {_short(change.address)}")
        elif change.link is Link.CONNECTING:
            self.update(f"◌ connecting to {_short(change.address)}")
        elif seen is None:
            self.update(f"✖ no daemon · trying again in {change.retry_in:g} s · r tries now")
        else:
            self.update(f"✖ daemon lost · as of {seen:%H:%M:%S} · trying again in {change.retry_in:g} s · r tries now")


def _short(address: str) -> str:
    """An address that fits a line of 80."""
    return address if len(address) <= 48 else f"…{address[-47:]}"
