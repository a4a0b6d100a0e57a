"""The dashboard's application: one connection, one screen."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import ClassVar

from textual.app import App
from textual.binding import Binding, BindingType
from textual.theme import Theme

from optiq_client import AsyncClient, OptiqClientError
from optiq_tui.connection import RETRY_DELAYS, Connection
from optiq_tui.screens.dashboard import Dashboard
from optiq_tui.widgets.jobs import JobsPanel

THEME = Theme(
    name="optiq",
    primary="#4fc1ff",
    secondary="#7f8ea3",
    accent="#c3a6ff",
    success="#7ed491",
    warning="#ffb054",
    error="#ff6b6b",
    foreground="#d8dee9",
    background="#10141b",
    surface="#151a23",
    panel="#1e2530",
    dark=True,
    variables={"footer-key-foreground": "#4fc1ff", "footer-background": "#151a23", "block-cursor-text-style": "none"},
)

FONT_FACE = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def local_now() -> datetime:
    """Now, in the timezone of this machine."""
    return datetime.now(UTC).astimezone()


# Textual's own bindings are left out: ctrl+q is flow control in many terminals.
class OptiqApp(App[None], inherit_bindings=False):
    """Shows one daemon.

    Args:
        address: ``unix:/path`` or ``host:port``.
        tenant: whose adapters and jobs.
        readonly: offer no action that changes anything.
        now: the clock, with the timezone to show times in.
        retry_delays: seconds between tries to connect.
    """

    CSS_PATH = "optiq.tcss"
    TITLE = "optiq"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c", "quit", "Quit", id="app.quit", tooltip="Close the dashboard; the daemon goes on"),
        Binding("question_mark", "help", "Keys", id="app.help", tooltip="Show every key", key_display="?"),
    ]

    def __init__(
        self,
        address: str,
        *,
        tenant: str = "default",
        readonly: bool = False,
        now: Callable[[], datetime] = local_now,
        retry_delays: tuple[float, ...] = RETRY_DELAYS,
    ) -> None:
        super().__init__()
        self.register_theme(THEME)
        self.theme = THEME.name
        self.dashboard = Dashboard(tenant=tenant, now=now, readonly=readonly)
        self.connection = Connection(address, tenant, self.dashboard.post_message, retry_delays=retry_delays)
        self._readonly = readonly

    async def on_mount(self) -> None:
        """Show the screen, then connect."""
        await self.push_screen(self.dashboard)
        self.run_worker(self.connection.run(), name="connection", group="connection")

    def on_jobs_panel_selected(self, message: JobsPanel.Selected) -> None:
        """Follow the curve of the job under the cursor."""
        self.connection.select_job(message.name)

    def on_dashboard_retry(self) -> None:
        """Connect or read again now."""
        self.connection.retry()

    def on_dashboard_act(self, message: Dashboard.Act) -> None:
        """Run an action beside the screen, so that it never waits."""
        if not self._readonly:
            self.run_worker(self._act(message), group="actions")

    async def _act(self, message: Dashboard.Act) -> None:
        actions: dict[str, Callable[[AsyncClient], Awaitable[object]]] = {
            "load": lambda client: client.adapters.load(message.name),
            "unload": lambda client: client.adapters.unload(message.name),
            "cancel": lambda client: client.training.cancel(message.name),
        }
        try:
            await self.connection.act(actions[message.verb])
        except OptiqClientError as error:
            self.notify(str(error), title=f"{message.verb} failed", severity="error", timeout=10, markup=False)

    def export_screenshot(self, *, title: str | None = None, simplify: bool = False) -> str:
        """An SVG of the screen, in the viewer's own monospace font: nothing is fetched from elsewhere."""
        return FONT_FACE.sub("", super().export_screenshot(title=title, simplify=simplify))

    def action_help(self) -> None:
        """Show or hide the panel of keys."""
        if self.screen.query("HelpPanel"):
            self.action_hide_help_panel()
        else:
            self.action_show_help_panel()
