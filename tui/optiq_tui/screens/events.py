"""6 Events: the daemon's log, filtered and followed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.widget import Widget
from textual.widgets import Input

from optiq_client import Event
from optiq_tui.screens.board import Board
from optiq_tui.view import Part, View
from optiq_tui.widgets.columns import Column
from optiq_tui.widgets.filter_box import FilterBox
from optiq_tui.widgets.panel import Panel
from optiq_tui.widgets.table import Table
from optiq_tui.widgets.words import Words

TONES = {
    "error": ("failed", "quarantined", "refused", "crashed", "lost", "import_failed"),
    "success": ("resident", "succeeded", "serving", "available"),
    "warning": ("restarted", "restarting", "cancelled", "deleted", "retired", "ignored"),
}
KINDS = ("", "adapter.", "job.", "engine.", "route.", "tenant.", "daemon.")


class Events(Board):
    """The newest on top; the one under the cursor in full below."""

    NAME = "events"
    HELP = (
        "What happened, the newest first. `/` filters, `t` shows one kind after the other, `f` stops following: the "
        "list then stays as it is until you follow again."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", id="events.filter", tooltip="Filter the events", key_display="/"),
        Binding("t", "kind", "Kind", id="events.kind", tooltip="Only adapters, only jobs, …, all"),
        Binding("f", "follow", "Follow", id="events.follow", tooltip="Follow what happens, or hold the list still"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._events: tuple[Event, ...] = ()
        self._kind = ""
        self._following = True
        self.filter = FilterBox("by any word", id="events-filter")
        self.table: Table[Event] = Table(
            (
                Column("time", self._time, 8, sort=lambda e: e.revision),
                Column("event", self._type, 20, sort=lambda e: e.type),
                Column(
                    "about", lambda e: e.resource.rpartition("/")[2] or "daemon", 12, flex=1, sort=lambda e: e.resource
                ),
                Column("what happened", lambda e: e.message, 20, flex=3),
            ),
            lambda e: str(e.revision),
            id="events-table",
            log=True,
            empty="Nothing has happened yet.",
        )
        self.full = Words(id="event-text")

    def body(self) -> Iterator[Widget]:
        """List, and one event."""
        yield Container(
            Panel("Events", self.filter, self.table, id="events"),
            Panel("Event", VerticalScroll(self.full, can_focus=False), id="event"),
            id="events-body",
        )

    def home(self) -> Widget | None:
        """The list."""
        return self.table

    def show(self, view: View, parts: frozenset[Part]) -> None:
        """Draw what has changed, unless the list is held still."""
        if Part.EVENTS in parts and self._following:
            self._events = view.events
            self._show_list()

    def _show_list(self) -> None:
        box = self.filter
        shown = [
            event
            for event in reversed(self._events)
            if event.type.startswith(self._kind) and (not box.value or box.matches(_searched(event)))
        ]
        self.table.empty_text = Text("No event matches." if self._events else "Nothing has happened yet.")
        self.table.show(shown)
        kind = f" · {self._kind}*" if self._kind else ""
        held = "" if self._following else " · held still, f follows"
        self.query_one("#events", Panel).count(f"{len(shown)} of {len(self._events)}{kind}{held}")
        self._show_full()

    def _show_full(self) -> None:
        event = self.table.selected
        if event is None:
            self.full.update("")
            return
        zone = self.optiq.now().tzinfo
        at = event.time.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S") if event.time else "-"
        text = Text.assemble((f"{at}  revision {event.revision}  ", "dim"), (event.type, self._tone(event)))
        text.append(f"\n{event.message}")
        for label, value in (("about", event.resource), *sorted(event.fields.items())):
            if value:
                text.append(f"\n{label:<10} ", "dim")
                text.append(value)
        self.full.update(text)

    # Messages

    @on(Table.Highlighted, "#events-table")
    def _highlighted(self) -> None:
        self._show_full()

    @on(Input.Changed, "#events-filter")
    def _filtered(self) -> None:
        self._show_list()

    @on(Input.Submitted, "#events-filter")
    def _filter_done(self) -> None:
        self.table.focus()

    # Actions

    def action_filter(self) -> None:
        """Type a filter."""
        self.filter.focus()

    def action_kind(self) -> None:
        """The next kind of events."""
        self._kind = KINDS[(KINDS.index(self._kind) + 1) % len(KINDS)]
        self._show_list()

    def action_follow(self) -> None:
        """Follow, or hold the list still."""
        self._following = not self._following
        if self._following:
            self._events = self.optiq.view.events
        self._show_list()

    # Cells

    def _time(self, event: Event) -> Text:
        zone = self.optiq.now().tzinfo
        return Text(event.time.astimezone(zone).strftime("%H:%M:%S") if event.time else "-", style="dim")

    def _type(self, event: Event) -> Text:
        return Text(event.type, style=self._tone(event))

    def _tone(self, event: Event) -> str:
        word = event.type.rpartition(".")[2]
        return self.tones.style(next((tone for tone, words in TONES.items() if word in words), "accent"))


def _searched(event: Event) -> str:
    return " ".join((event.type, event.resource, event.message, *event.fields.values()))
