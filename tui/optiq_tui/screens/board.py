"""What the six screens share: the strip of tabs, the state of the connection, and what to show without a daemon."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, cast

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer, Static

from optiq_client import EngineState
from optiq_tui.messages import Act, Look
from optiq_tui.view import ALL_PARTS, Link, Part, View
from optiq_tui.widgets.bars import LinkBar, TabStrip
from optiq_tui.widgets.classes import mark
from optiq_tui.widgets.tones import Tones

if TYPE_CHECKING:
    from optiq_tui.app import OptiqApp

SMALLEST = (80, 24)


class Board(Screen[None]):
    """One screen of the dashboard. Subclasses say what is in it and how a view is shown."""

    NAME: ClassVar[str] = ""
    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back", show=False, id="board.leave", tooltip="Leave the field, back to the list"),
    ]

    def __init__(self) -> None:
        super().__init__()
        # Classes that the style sheet lays the screen out by.
        self.HORIZONTAL_BREAKPOINTS = [(0, "-tiny"), (SMALLEST[0], "-narrow"), (140, "-wide")]
        self.VERTICAL_BREAKPOINTS = [(0, "-low"), (SMALLEST[1], "-short"), (34, "-tall")]
        self.add_class("board")
        self._can: tuple[bool | None, ...] = ()

    # For subclasses

    def body(self) -> Iterator[Widget]:
        """The widgets of this screen."""
        raise NotImplementedError

    def show(self, view: View, parts: frozenset[Part]) -> None:
        """Draw what has changed."""
        raise NotImplementedError

    def look(self) -> Look:
        """What this screen needs read."""
        return Look()

    def home(self) -> Widget | None:
        """What has the focus when nothing else has."""
        return None

    # For all

    @property
    def optiq(self) -> OptiqApp:
        """The application."""
        return cast("OptiqApp", self.app)

    @property
    def tones(self) -> Tones:
        """Colours of the current theme."""
        return Tones.of(self)

    def compose(self) -> ComposeResult:
        """Tabs, body, connection and keys."""
        yield Static("", id="too-small")
        with Vertical(id="main"):
            yield TabStrip(self.NAME)
            yield Static("", id="notice", markup=False)
            yield Static("", id="welcome")
            with Vertical(id="body"):
                yield from self.body()
            yield LinkBar()
            yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        """Show what is known."""
        self.redraw()

    def on_screen_resume(self) -> None:
        """Show what was missed, and ask for what this screen needs."""
        self.redraw()
        self.send_look()
        if self.focused is None and (home := self.home()) is not None:
            home.focus()

    def on_resize(self) -> None:
        """Say so where there is too little room."""
        width, height = self.app.size
        self.query_one("#too-small", Static).update(
            f"The dashboard needs {SMALLEST[0]} x {SMALLEST[1]};\nthis terminal is {width} x {height}.\n\n"
            "Make it larger, or use: optiq ps"
        )

    def redraw(self) -> None:
        """Draw everything again."""
        if self.is_mounted:
            self.take(self.optiq.view, ALL_PARTS)

    def take(self, view: View, parts: frozenset[Part]) -> None:
        """Draw a view, or say why there is none."""
        if not self.query(LinkBar):  # not composed yet, or being closed
            return
        if parts & {Part.LINK, Part.STATUS}:
            self._show_link(view)
        if view.known:
            self.show(view, parts)
        self.refresh_keys()

    def refresh_keys(self) -> None:
        """Show the keys that work now; drawing them is not cheap, so only when they have changed."""
        bindings = [binding for binding in self.BINDINGS if isinstance(binding, Binding)]
        can = tuple(self.check_action(binding.action.partition("(")[0], ()) for binding in bindings)
        if can != self._can:
            self._can = can
            self.refresh_bindings()

    def on_descendant_focus(self) -> None:
        """Some keys work in one list only."""
        self.refresh_keys()

    def send_look(self) -> None:
        """Ask for what this screen needs now."""
        self.post_message(self.look())

    def act(self, text: str, verb: str, name: str, argument: str = "") -> None:
        """Have something done, and say so."""
        self.notify(text, markup=False)
        self.post_message(Act(verb, name, argument))

    def action_leave(self) -> None:
        """Back to the main widget."""
        if (home := self.home()) is not None:
            home.focus()

    def _show_link(self, view: View) -> None:
        mark(self, view.known and not view.live, "-stale")
        mark(self, not view.known, "-welcome")
        self.query_one(LinkBar).show(view, self.optiq.now())
        self.query_one(TabStrip).show(view, self.optiq.readonly)
        if not view.known:
            self.query_one("#welcome", Static).update(self._welcome(view))
        notice = self.query_one("#notice", Static)
        engine = view.status.engine if view.status else None
        troubled = engine is not None and view.live and engine.state is not EngineState.SERVING
        if notice.display != troubled:
            notice.display = troubled
        if engine is not None and troubled:
            failed = engine.state is EngineState.FAILED
            mark(notice, failed, "-failed")
            what = "cannot start" if failed else engine.state.lower()
            then = "optiq doctor says how to mend it" if failed else "requests wait or are told to try again"
            notice.update(f"engine {what}: {engine.message} · {then}" if engine.message else f"engine {what}; {then}")

    def _welcome(self, view: View) -> Text:
        link, tones = view.link, self.tones
        if link.link is Link.REFUSED:
            return Text.assemble(
                ("The daemon refused this token.\n", f"bold {tones.style('error')}"),
                (link.detail, "dim"),
                "\n\nAsk its owner for a token, then start the dashboard with it:\n\n    ",
                ("optiq tenants token create TENANT", "bold"),
                "\n    ",
                ("OPTIQ_TOKEN=… optiq tui", "bold"),
            )
        if link.link is Link.LOST:
            return Text.assemble(
                (link.detail.partition(";")[0], "bold"),  # the command to run follows, larger
                "\n\nStart a daemon in another terminal:\n\n    ",
                ("optiq serve", "bold"),
                "\n\nThis screen connects by itself.",
            )
        return Text.assemble(
            ("Connecting …\n\n", "bold"),
            ("to ", "dim"),
            link.address,
            ("\n\nIf nobody answers within seconds, this screen says what to do.", "dim"),
        )
