"""The dashboard's application: one connection, and the screens that draw what it knows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import ClassVar

from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen

from optiq_client import OptiqClientError
from optiq_tui.actions import VERBS
from optiq_tui.connection import RETRY_DELAYS, Connection
from optiq_tui.messages import Act, Look, PlanWanted, PlayWanted, SubmitWanted, ViewChanged
from optiq_tui.screens import BOARDS
from optiq_tui.screens.board import Board
from optiq_tui.screens.help import Help
from optiq_tui.settings import Settings
from optiq_tui.themes import DARK, LIGHT
from optiq_tui.view import View
from optiq_tui.widgets.chart import Chart

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
        settings: theme, density and keys.
        now: the clock, with the timezone to show times in.
        retry_delays: seconds between tries to connect.
    """

    CSS_PATH = "optiq.tcss"
    TITLE = "optiq"
    COMMAND_PALETTE_BINDING = "ctrl+p"
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(str(n), f"go('{name}')", name.title(), id=f"screen.{name}", tooltip=f"Go to {name}", show=False)
            for n, name in enumerate(BOARDS, start=1)
        ),
        Binding("ctrl+p,colon", "command_palette", "Commands", id="app.commands", tooltip="Search all commands"),
        Binding(
            "question_mark", "help", "Help", id="app.help", tooltip="Keys, and what has the focus", key_display="?"
        ),
        Binding("c", "compact", "Compact", id="app.compact", tooltip="Frames on or off", show=False),
        Binding("r", "retry", "Refresh", id="app.refresh", tooltip="Connect or read everything again now", show=False),
        Binding("q,ctrl+c", "quit", "Quit", id="app.quit", tooltip="Close the dashboard; the daemon goes on"),
    ]

    def __init__(
        self,
        address: str,
        *,
        tenant: str = "default",
        readonly: bool = False,
        settings: Settings | None = None,
        now: Callable[[], datetime] = local_now,
        retry_delays: tuple[float, ...] = RETRY_DELAYS,
    ) -> None:
        super().__init__()
        settings = settings or Settings()
        for theme in (DARK, LIGHT):
            self.register_theme(theme)
        self.theme = settings.theme
        self.set_keymap(settings.keys)
        self.set_class(settings.compact, "-compact")
        self.readonly = readonly
        self.tenant = tenant
        self.now = now
        self.view = View()
        self.connection = Connection(address, tenant, self.post_message, now=now, retry_delays=retry_delays)

    @property
    def board(self) -> Board:
        """The screen at the bottom of the stack."""
        board = self.screen_stack[0] if isinstance(self.screen_stack[0], Board) else self.screen_stack[1]
        assert isinstance(board, Board)
        return board

    async def on_mount(self) -> None:
        """Show the first screen, then connect."""
        for name, board in BOARDS.items():
            self.install_screen(board(), name)
        await self.push_screen(next(iter(BOARDS)))
        self.theme_changed_signal.subscribe(self, lambda _: self._redraw())
        self.run_worker(self.connection.run(), name="connection", group="connection")

    # Messages

    def on_view_changed(self, message: ViewChanged) -> None:
        """Give the news to the screens that are to be seen."""
        self.view = message.view
        for screen in self.screen_stack:
            if isinstance(screen, Board):
                screen.take(message.view, message.parts)
            elif handler := getattr(screen, "show_view", None):
                handler(message.view, message.parts)

    def on_look(self, message: Look) -> None:
        """Read what the screen in front needs."""
        self.connection.look(message)

    def on_retry(self) -> None:
        """Connect or read again now."""
        self.connection.retry()

    def on_plan_wanted(self, message: PlanWanted) -> None:
        """Plan the job of the form."""
        self.connection.plan(message)

    def on_play_wanted(self, message: PlayWanted) -> None:
        """Ask for the playground's answers."""
        if not self.readonly:
            self.connection.play(message)

    def on_act(self, message: Act) -> None:
        """Run an action beside the screen, so that it never waits."""
        if not self.readonly:
            self.run_worker(self._act(message), group="actions")

    def on_submit_wanted(self, message: SubmitWanted) -> None:
        """Queue a job."""
        if not self.readonly:
            self.run_worker(self._submit(message), group="actions")

    async def _act(self, message: Act) -> None:
        try:
            await self.connection.act(lambda client: VERBS[message.verb](client, message))
        except OptiqClientError as error:
            self.notify(str(error), title=f"{message.verb} failed", severity="error", timeout=10, markup=False)

    async def _submit(self, message: SubmitWanted) -> None:
        try:
            job = await self.connection.act(lambda client: client.training.create(message.adapter_id, message.config))
        except OptiqClientError as error:
            self.notify(str(error), title="not queued", severity="error", timeout=10, markup=False)
        else:
            self.notify(f"queued {job.id}", markup=False)

    # Actions

    def action_go(self, name: str) -> None:
        """Go to a screen."""
        if not isinstance(self.screen, BOARDS[name]):
            self.switch_screen(name)

    def action_help(self) -> None:
        """Show the keys, and what the focused widget is for."""
        self.push_screen(Help(self.screen))

    def action_compact(self) -> None:
        """Show frames, or rows in their place."""
        self.toggle_class("-compact")

    def action_retry(self) -> None:
        """Connect or read again now."""
        self.connection.retry()

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The palette: screens, what can be done here and now, and the look."""
        for name in BOARDS:
            yield SystemCommand(f"Go to {name}", f"Show the {name} screen", lambda name=name: self.action_go(name))
        for active in screen.active_bindings.values():
            binding = active.binding
            if active.enabled and binding.id and not binding.id.startswith(("screen.", "app.", "table.", "chart.")):
                yield SystemCommand(
                    binding.description,
                    binding.tooltip,
                    lambda active=active: self.call_later(self.run_action, active.binding.action, active.node),
                )
        yield SystemCommand("Theme", "Choose colours; optiq and optiq-light are ours", self.action_change_theme)
        yield SystemCommand("Compact", "Frames on or off", self.action_compact)
        yield SystemCommand("Help", "Keys, and what has the focus", self.action_help)
        yield SystemCommand("Refresh", "Connect or read everything again now", self.action_retry)
        yield SystemCommand("Quit", "Close the dashboard; the daemon goes on", self.exit)

    def export_screenshot(self, *, title: str | None = None, simplify: bool = False) -> str:
        """An SVG of the screen, in the viewer's own monospace font: nothing is fetched from elsewhere."""
        return FONT_FACE.sub("", super().export_screenshot(title=title, simplify=simplify))

    def _redraw(self) -> None:
        """Texts carry colours of the theme that they were made with."""
        for chart in self.query(Chart):
            chart.forget()
        self.board.redraw()
