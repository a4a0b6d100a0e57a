"""5 Playground: one prompt, several adapters, their answers side by side from one batch; and a blend of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal, VerticalScroll
from textual.widget import Widget
from textual.widgets import Input, Static, TextArea

from optiq_client import Adapter, AdapterState
from optiq_tui.messages import LaneWanted, PlayWanted
from optiq_tui.screens.board import Board
from optiq_tui.view import LanePhase, Part, View
from optiq_tui.widgets.answers import Answers
from optiq_tui.widgets.columns import Column
from optiq_tui.widgets.filter_box import FilterBox
from optiq_tui.widgets.panel import Panel
from optiq_tui.widgets.slider import Slider
from optiq_tui.widgets.table import Table

BASE = ""
MOST_LANES = 6
FIRST_WEIGHT = 0.5
SERVED = {AdapterState.AVAILABLE, AdapterState.RESIDENT, AdapterState.LOADING}


class Prompt(TextArea):
    """The prompt. Tab leaves it, as in every other field."""

    HELP = "The prompt. `ctrl+g` asks; `tab` goes on, `escape` goes to the list of adapters."


class Playground(Board):
    """Prompt and choice on the left or on top, answers beside or below."""

    NAME = "playground"
    HELP = (
        "One prompt for several adapters at once: their answers come from the same forward passes. `space` picks, "
        "`ctrl+g` asks, `m` adds a blend of the picked ones, weighted by the sliders."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+g", "ask", "Ask", id="play.ask", tooltip="Ask all that are picked"),
        Binding("space", "pick", "Pick", id="play.pick", tooltip="Pick the adapter, or let it go"),
        Binding("m", "blend", "Blend", id="play.blend", tooltip="Also ask a blend of the picked adapters"),
        Binding("e", "edit", "Prompt", id="play.edit", tooltip="Write the prompt"),
        Binding("slash", "filter", "Filter", id="play.filter", tooltip="Filter the adapters", show=False),
        Binding("x", "stop", "Stop", id="play.stop", tooltip="Stop the answers"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._picked: list[str] = [BASE]
        self._blend = False
        self._adapters: tuple[Adapter, ...] = ()
        self.prompt = Prompt(id="prompt", soft_wrap=True, compact=True, tab_behavior="focus", show_line_numbers=False)
        self.filter = FilterBox("adapters", id="play-filter")
        self.tokens = Input("128", id="play-tokens", compact=True, restrict=r"\d{0,5}", tooltip="Tokens at most")
        self.table: Table[str] = Table(
            (
                Column("", self._mark, 1),
                Column("answer from", self._answerer, 12, flex=1),
                Column("state", self._state, 9, drop=1),
            ),
            lambda name: name or "-",
            id="play-table",
        )
        self.sliders = VerticalScroll(id="sliders", can_focus=False)
        self.answers = Answers(id="answers")

    def body(self) -> Iterator[Widget]:
        """Prompt, choice, sliders and answers."""
        yield Container(
            Container(
                Panel("Prompt", self.prompt, self._limits(), id="play-prompt"),
                Panel("Ask", self.filter, self.table, self.sliders, id="play-choice"),
                id="play-left",
            ),
            Panel("Answers", self.answers, id="play-answers"),
            id="play-body",
        )

    def home(self) -> Widget | None:
        """The choice."""
        return self.table

    def show(self, view: View, parts: frozenset[Part]) -> None:
        """Draw what has changed."""
        if Part.ADAPTERS in parts:
            self._adapters = view.adapters
            known = {adapter.id for adapter in view.adapters}
            self._picked = [name for name in self._picked if name == BASE or name in known]
            self._show_choice()
        if Part.PLAY in parts:
            self.answers.show(view.lanes)
            running = sum(lane.phase in {LanePhase.WAITING, LanePhase.RUNNING} for lane in view.lanes)
            done = [lane for lane in view.lanes if lane.phase is LanePhase.DONE]
            shared = max((lane.adapters for lane in done), default=0)
            said = f"{running} running" if running else f"{shared} adapters shared one step" if shared > 1 else ""
            self.query_one("#play-answers", Panel).count(said)

    def _limits(self) -> Widget:
        return Horizontal(Static("tokens", classes="label"), self.tokens, id="play-limits")

    def _show_choice(self) -> None:
        names = [adapter.id for adapter in self._adapters if adapter.state in SERVED]
        if self.filter.value:
            names = [name for name in names if self.filter.matches(name) or name in self._picked]
        self.table.show([BASE, *names])
        self._show_count()

    def _show_count(self) -> None:
        blend = " + blend" if self._blend else ""
        self.query_one("#play-choice", Panel).count(f"{len(self._picked)} picked{blend}")

    async def _show_sliders(self) -> None:
        """One slider for each picked adapter, while a blend is wanted; those that stay keep their value."""
        wanted = [name for name in self._picked if name != BASE] if self._blend else []
        present = {slider.label: slider for slider in self.sliders.query(Slider)}
        for name, slider in present.items():
            if name not in wanted:
                await slider.remove()
        for name in wanted:
            if name not in present:
                await self.sliders.mount(Slider(name, FIRST_WEIGHT, id=f"slider-{name}"))
        self.sliders.display = bool(wanted)

    # Messages

    @on(Input.Changed, "#play-filter")
    def _filtered(self) -> None:
        self._show_choice()

    @on(Input.Submitted)
    def _input_done(self) -> None:
        self.table.focus()

    # Actions

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Actions appear where they mean something; with --readonly never."""
        if action in {"ask", "stop"} and self.optiq.readonly:
            return False
        if action == "stop":
            return any(lane.phase in {LanePhase.WAITING, LanePhase.RUNNING} for lane in self.optiq.view.lanes)
        return action != "pick" or self.focused is self.table

    async def action_pick(self) -> None:
        """Pick what is under the cursor, or let it go."""
        name = self.table.selected
        if name is None:
            return
        if name in self._picked:
            self._picked.remove(name)
        elif len(self._picked) >= MOST_LANES:
            self.notify(f"at most {MOST_LANES} answers side by side", severity="warning")
        else:
            self._picked.append(name)
        await self._show_sliders()
        self.table.refresh()
        self._show_count()

    async def action_blend(self) -> None:
        """Also ask a blend, or not any more."""
        if not self._blend and not [name for name in self._picked if name != BASE]:
            self.notify("pick adapters first: space", severity="warning")
            return
        self._blend = not self._blend
        await self._show_sliders()
        self._show_count()

    def action_edit(self) -> None:
        """Write the prompt."""
        self.prompt.focus()

    def action_filter(self) -> None:
        """Filter the adapters."""
        self.filter.focus()

    def action_stop(self) -> None:
        """Stop the answers that run."""
        self.post_message(PlayWanted("", ()))

    def action_ask(self) -> None:
        """Ask all that are picked, at once."""
        prompt = self.prompt.text.strip()
        lanes = [LaneWanted(name or "base", {name: 1.0} if name else {}) for name in self._picked]
        if self._blend:
            weights = {slider.label: slider.value for slider in self.sliders.query(Slider) if slider.value}
            title = " + ".join(f"{weight:g} {name}" for name, weight in weights.items())
            lanes += [LaneWanted(title, weights)] if weights else []
        if not prompt or not lanes:
            self.notify("write a prompt first: e" if not prompt else "pick something to ask: space", severity="warning")
            return
        self.post_message(PlayWanted(prompt, tuple(lanes), max_tokens=int(self.tokens.value or 0)))

    # Cells

    def _mark(self, name: str) -> Text:
        return self.tones.text(
            "◆" if name in self._picked else "◇", "primary" if name in self._picked else "text-muted"
        )

    def _answerer(self, name: str) -> Text:
        return Text(name, style="bold") if name else Text("base", style="italic")

    def _state(self, name: str) -> Text:
        state = next((adapter.state for adapter in self._adapters if adapter.id == name), None)
        return (
            self.tones.text(state.lower(), "success" if state is AdapterState.RESIDENT else "text-muted")
            if state
            else Text()
        )
