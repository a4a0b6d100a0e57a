"""The main screen: four panels, side by side where there is room, as tabs where there is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.message import Message
from textual.reactive import reactive
from textual.screen import Screen
from textual.widgets import Footer, Static

from optiq_client import AdapterState, Status
from optiq_tui.messages import AdaptersArrived, EventsArrived, JobsArrived, Link, LinkChanged, StatusArrived
from optiq_tui.screens.confirm import Confirm
from optiq_tui.widgets.adapters import AdaptersPanel
from optiq_tui.widgets.bars import PANELS, LinkBar, TabStrip
from optiq_tui.widgets.events import EventsPanel
from optiq_tui.widgets.jobs import JobsPanel
from optiq_tui.widgets.overview import Overview
from optiq_tui.widgets.panel import Panel
from optiq_tui.widgets.requests import RequestsPanel

SMALLEST = (80, 24)


class Dashboard(Screen[None]):
    """Draws messages; asks the app to act.

    Args:
        tenant: whose adapters and jobs are shown.
        now: the clock, with the timezone to show times in.
        readonly: hide the actions.
    """

    @dataclass
    class Act(Message):
        """The person wants ``verb`` (load, unload or cancel) on a resource."""

        verb: str
        name: str

    class Retry(Message):
        """The person wants a connection, or fresh lists, now."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "panel('adapters')", "Adapters", id="panel.adapters", tooltip="Go to the adapters", show=False),
        Binding("2", "panel('jobs')", "Jobs", id="panel.jobs", tooltip="Go to the training jobs", show=False),
        Binding("3", "panel('requests')", "Requests", id="panel.requests", tooltip="Go to live requests", show=False),
        Binding("4", "panel('events')", "Events", id="panel.events", tooltip="Go to the event log", show=False),
        Binding("tab", "step_panel(1)", "Next panel", id="panel.next", tooltip="Go to the next panel", priority=True),
        Binding(
            "shift+tab", "step_panel(-1)", "Previous", id="panel.previous", tooltip="Go back", priority=True, show=False
        ),
        Binding("l", "toggle_load", "Load/unload", id="adapter.toggle", tooltip="Load or unload the selected adapter"),
        Binding("x", "cancel_job", "Cancel job", id="job.cancel", tooltip="Cancel the selected training job"),
        Binding("r", "retry", "Refresh", id="connection.retry", tooltip="Connect or read everything again now"),
    ]

    active: reactive[str] = reactive("adapters", init=False)

    def __init__(self, *, tenant: str, now: Callable[[], datetime], readonly: bool) -> None:
        super().__init__(id="dashboard")
        # Classes that the style sheet lays the screen out by.
        self.HORIZONTAL_BREAKPOINTS = [(0, "-tiny"), (SMALLEST[0], "-narrow"), (140, "-wide")]
        self.VERTICAL_BREAKPOINTS = [(0, "-low"), (SMALLEST[1], "-short"), (34, "-tall")]
        self._tenant = tenant
        self._now = now
        self._readonly = readonly
        self._status: Status | None = None
        self._seen: datetime | None = None
        self._link = LinkChanged(Link.CONNECTING, "")
        self.overview = Overview()
        self.adapters = AdaptersPanel()
        self.jobs = JobsPanel()
        self.requests = RequestsPanel()
        self.events = EventsPanel()
        self.tabs = TabStrip(id="tabs")
        self.link_bar = LinkBar(id="link", markup=False)
        self.welcome = Static("", id="welcome")
        self.too_small = Static("", id="too-small")

    def compose(self) -> ComposeResult:
        """Overview, panels, connection and keys."""
        yield self.too_small
        with Vertical(id="main"):
            yield self.overview
            yield self.tabs
            yield self.welcome
            with Container(id="panels"):
                yield self.adapters
                yield self.jobs
                yield self.requests
                yield self.events
            yield self.link_bar
            yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Start on the adapters."""
        self.call_after_refresh(self._show_active)

    def on_resize(self) -> None:
        """Say so where there is too little room."""
        width, height = self.app.size
        self.too_small.update(
            f"The dashboard needs {SMALLEST[0]} x {SMALLEST[1]};\nthis terminal is {width} x {height}.\n\n"
            "Make it larger, or use: optiq ps"
        )

    # Messages of the connection

    def on_link_changed(self, message: LinkChanged) -> None:
        """Live, or the last picture dimmed."""
        self._link = message
        known = self._status is not None
        self.set_class(message.link is not Link.CONNECTED and known, "-stale")
        self.set_class(message.link is not Link.CONNECTED and not known, "-welcome")
        if message.link is Link.LOST and not known:
            self.welcome.update(
                Text.assemble(
                    (message.detail.partition(";")[0], "bold"),  # the command to run follows, larger
                    "\n\nStart a daemon in another terminal:\n\n    ",
                    ("optiq serve", "bold"),
                    "\n\nThis screen connects by itself.",
                )
            )
        elif message.link is Link.CONNECTING:
            self.welcome.update("Connecting …")
        self._show_link()
        self.refresh_bindings()

    def on_status_arrived(self, message: StatusArrived) -> None:
        """Header and live requests."""
        self._status, self._seen = message.status, self._now()
        self.overview.show(message.status)
        self.requests.show(message.status, self._now())
        self.adapters.show_empty(f"{message.status.adapters_path}/{self._tenant}")
        self._show_link()

    def on_adapters_arrived(self, message: AdaptersArrived) -> None:
        """The adapters panel."""
        self.adapters.show(message.adapters)

    def on_jobs_arrived(self, message: JobsArrived) -> None:
        """The jobs panel and the loss curve."""
        self.jobs.show(message.jobs, message.curves)

    def on_events_arrived(self, message: EventsArrived) -> None:
        """The event log."""
        self.events.show(message.events, self._now().tzinfo)

    # Panels

    def watch_active(self) -> None:
        """Another panel is active."""
        self._show_active()

    def on_descendant_focus(self) -> None:
        """The panel with the focus is the active one, however it got there."""
        for panel in self.query(Panel):
            if panel.has_focus_within and panel.id:
                self.active = panel.id
        self.refresh_bindings()

    def _show_active(self) -> None:
        for panel in self.query(Panel):
            panel.set_class(panel.id == self.active, "-active")
        self.tabs.show(self.active)
        self.query_one(f"#{self.active}", Panel).focus_table()

    def _show_link(self) -> None:
        self.link_bar.show(self._link, self._status, self._seen, self._now())

    def action_panel(self, name: str) -> None:
        """Go to a panel."""
        self.active = name

    def action_step_panel(self, step: int) -> None:
        """Go to the next or previous panel."""
        names = list(PANELS)
        self.active = names[(names.index(self.active) + step) % len(names)]

    # Actions

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Actions appear where they mean something; with --readonly never."""
        if action == "toggle_load":
            return not self._readonly and self.active == "adapters"
        if action == "cancel_job":
            return not self._readonly and self.active == "jobs"
        return True

    def action_toggle_load(self) -> None:
        """Load the selected adapter, or unload it if it is resident."""
        adapter = self.adapters.selected
        if adapter is None:
            self.notify("no adapter is selected", severity="warning")
        elif adapter.state is AdapterState.RESIDENT:
            self._act(f"unloading {adapter.id}", "unload", adapter.name)
        else:
            self._act(f"loading {adapter.id}", "load", adapter.name)

    def action_cancel_job(self) -> None:
        """Cancel the selected job, after asking."""
        job = self.jobs.selected
        if job is None or job.state.ended:
            self.notify("this job has ended" if job else "no job is selected", severity="warning")
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self._act(f"cancelling {job.id}", "cancel", job.name)

        self.app.push_screen(
            Confirm(f"Cancel training job {job.id}?", "It ends at its next step; no adapter is made."), answered
        )

    def action_retry(self) -> None:
        """Ask the app to connect or read again."""
        self.app.post_message(self.Retry())

    def _act(self, text: str, verb: str, name: str) -> None:
        self.notify(text, markup=False)
        self.app.post_message(self.Act(verb, name))
