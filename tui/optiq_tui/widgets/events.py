"""The daemon's log, newest first."""

from __future__ import annotations

from datetime import tzinfo

from rich.text import Text

from optiq_client import Event
from optiq_tui.widgets.panel import Panel

BAD = ("failed", "quarantined", "refused", "crashed", "lost")
GOOD = ("resident", "succeeded", "serving", "available")
NOTABLE = ("restarted", "restarting", "cancelled", "deleted")


class EventsPanel(Panel):
    """Time, kind, resource and sentence of each event."""

    def __init__(self) -> None:
        super().__init__("events", "4 Events", ("time", "event", "about", "what happened"), log=True)

    def on_mount(self) -> None:
        """Say why it is empty."""
        self.empty.update("Nothing has happened yet.")

    def show(self, events: tuple[Event, ...], zone: tzinfo | None) -> None:
        """Show these events, given oldest first."""
        self.show_rows(
            {
                str(e.revision): (
                    Text(e.time.astimezone(zone).strftime("%H:%M:%S") if e.time else "-", style="dim"),
                    self.tones.text(e.type, self._tone(e.type)),
                    e.resource.rpartition("/")[2] or "daemon",
                    e.message,
                )
                for e in reversed(events)
            },
            count=f"{len(events)}" if events else "",
        )

    @staticmethod
    def _tone(kind: str) -> str:
        word = kind.rpartition(".")[2]
        if word in BAD:
            return "error"
        if word in NOTABLE:
            return "warning"
        return "success" if word in GOOD else "accent"
