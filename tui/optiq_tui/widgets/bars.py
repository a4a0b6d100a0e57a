"""One-line widgets: the strip of tabs, and the state of the connection."""

from __future__ import annotations

from datetime import datetime

from textual.content import Content

from optiq_client import humanize
from optiq_tui.view import Link, View
from optiq_tui.widgets.classes import mark
from optiq_tui.widgets.words import Words

MARKS = {
    Link.CONNECTED: ("●", "$text-success"),
    Link.CONNECTING: ("◌", "$text-muted"),
    Link.LOST: ("✖", "$text-warning"),
    Link.REFUSED: ("⊘", "$text-error"),
}


class TabStrip(Words):
    """Names of the screens; a click goes there.

    Args:
        active: name of the screen that it is on.
    """

    def __init__(self, active: str) -> None:
        super().__init__(id="tabs")
        self._active = active

    def show(self, view: View, readonly: bool) -> None:
        """Mark the active screen, and whether what it shows is live."""
        from optiq_tui.screens import BOARDS

        parts = []
        for number, name in enumerate(BOARDS, start=1):
            style = "b reverse" if name == self._active else "dim"
            parts.append(f"[@click=app.go('{name}')][{style}] {number} {name.title()} [/][/]")
        mark, tone = MARKS[view.link.link]
        self.update(Content.from_markup("".join(parts) + f"  [{tone}]{mark}[/]" + (" [dim]ro[/]" if readonly else "")))


class LinkBar(Words):
    """Says whether what is shown is live."""

    def __init__(self) -> None:
        super().__init__(id="link")

    def show(self, view: View, now: datetime) -> None:
        """Show the connection's state; ``now`` is for the daemon's age."""
        link, status = view.link, view.status
        mark(self, link.link in {Link.LOST, Link.REFUSED}, "-lost")
        mark(self, link.link is Link.CONNECTED, "-connected")
        again = f"trying again in {link.retry_in:g} s · r tries now"
        if link.link is Link.CONNECTED:
            up = f" · up {humanize.since(status.start_time, now)}" if status and status.start_time else ""
            version = f" · optiq {status.version}" if status else ""
            self.update(f"● connected{up}{version} · {_short(link.address)}")
        elif link.link is Link.CONNECTING:
            self.update(f"◌ connecting to {_short(link.address)}")
        elif link.link is Link.REFUSED:
            self.update(f"⊘ token refused · {again}")
        elif view.seen is None:
            self.update(f"✖ no daemon · {again}")
        else:
            self.update(f"✖ daemon lost · as of {view.seen:%H:%M:%S} · {again}")


def _short(address: str) -> str:
    """An address that fits a line of 80."""
    return address if len(address) <= 36 else f"…{address[-35:]}"
