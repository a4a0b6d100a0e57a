"""Answers side by side, with their timings below."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from optiq_tui.view import Lane, LanePhase
from optiq_tui.widgets.tones import Tones
from optiq_tui.widgets.words import Words

MARKS = {
    LanePhase.WAITING: ("·", "text-muted"),
    LanePhase.RUNNING: ("▶", "accent"),
    LanePhase.DONE: ("✔", "success"),
    LanePhase.FAILED: ("✖", "error"),
    LanePhase.STOPPED: ("■", "text-muted"),
}


ROOMY = 30


class Answer(Vertical):
    """One answer: title on the frame, text, timings."""

    def __init__(self) -> None:
        super().__init__(classes="answer")
        self._text = Words()
        self._scroll = VerticalScroll(self._text, can_focus=True)
        self._timings = Words(classes="timings")
        self._shown: Lane | None = None

    def compose(self) -> ComposeResult:
        """Text above, timings below."""
        yield self._scroll
        yield self._timings

    def show(self, lane: Lane) -> None:
        """Show this lane; the end of a growing text stays in sight."""
        if lane is self._shown:
            return
        self._shown = lane
        tones = Tones.of(self)
        mark, tone = MARKS[lane.phase]
        self.border_title = Content.assemble((mark, tones.colour(tone)), " ", (lane.title, "bold"))
        self.border_subtitle = Content(lane.served)
        self._text.update(lane.text)
        if lane.phase is LanePhase.RUNNING:
            self._scroll.scroll_end(animate=False)
        self._timings.update(_timings(lane, tones, roomy=self.size.width >= ROOMY))


class Answers(Horizontal):
    """As many columns as there are lanes."""

    def __init__(self, *, id: str) -> None:
        super().__init__(Words(id="no-answers"), id=id)
        self._columns: list[Answer] = []

    def on_mount(self) -> None:
        """Say how to begin."""
        self.query_one("#no-answers", Static).update(
            Text.assemble(
                "Write a prompt, pick adapters with ",
                ("space", "bold"),
                " and ask them all at once with ",
                ("ctrl+g", "bold"),
                ".\n\nThe answers come from one batch, whatever adapters they use.",
            )
        )

    def show(self, lanes: Sequence[Lane]) -> None:
        """Show these lanes."""
        self.query_one("#no-answers").display = not lanes
        while len(self._columns) > len(lanes):
            self._columns.pop().remove()
        while len(self._columns) < len(lanes):
            self._columns.append(Answer())
            self.mount(self._columns[-1])
        for column, lane in zip(self._columns, lanes, strict=True):
            column.show(lane)


def _timings(lane: Lane, tones: Tones, *, roomy: bool) -> Text:
    if lane.phase is LanePhase.FAILED:
        return tones.text(lane.note, "error")
    if lane.phase is not LanePhase.DONE:
        return Text(f"{lane.tokens} tokens" if lane.tokens else lane.note, style="dim")
    if not roomy:
        return Text(
            f"{lane.ttft_ms:.0f} ms · {lane.tokens_per_second:.1f}/s\n{lane.tokens} tok · {lane.rows} rows", "dim"
        )
    text = Text(f"first token {lane.ttft_ms:.0f} ms · {lane.tokens_per_second:.1f} tok/s", "dim")
    text.append(f"\n{lane.tokens} tokens, {lane.note} · batch of {lane.rows} rows, {lane.adapters} adapters")
    return text
