"""Marks and colours of states. Every state has its own mark, so that colour is never the only sign."""

from __future__ import annotations

from typing import Self

from rich.text import Text
from textual.widget import Widget

from optiq_client import AdapterState, EngineState, JobState

ADAPTER: dict[str, tuple[str, str]] = {
    AdapterState.RESIDENT: ("●", "success"),
    AdapterState.AVAILABLE: ("○", "text-muted"),
    AdapterState.LOADING: ("◐", "accent"),
    AdapterState.UNLOADING: ("◑", "accent"),
    AdapterState.DISCOVERED: ("◌", "accent"),
    AdapterState.VALIDATING: ("◍", "accent"),
    AdapterState.QUARANTINED: ("✖", "error"),
}
JOB: dict[str, tuple[str, str]] = {
    JobState.RUNNING: ("▶", "accent"),
    JobState.QUEUED: ("·", "text-muted"),
    JobState.PLANNING: ("◌", "accent"),
    JobState.WAITING: ("◔", "warning"),
    JobState.PAUSED: ("‖", "warning"),
    JobState.SUCCEEDED: ("✔", "success"),
    JobState.FAILED: ("✖", "error"),
    JobState.CANCELLED: ("■", "text-muted"),
    JobState.REFUSED: ("⊘", "error"),
}
ENGINE: dict[str, tuple[str, str]] = {
    EngineState.SERVING: ("●", "success"),
    EngineState.STARTING: ("◐", "warning"),
    EngineState.RESTARTING: ("◐", "warning"),
    EngineState.FAILED: ("✖", "error"),
}
PHASE: dict[str, tuple[str, str]] = {
    "decode": ("▶", "success"),
    "prefill": ("◐", "accent"),
    "queued": ("·", "text-muted"),
}
UNKNOWN = ("?", "text-muted")


class Tones:
    """Resolves names of theme colours for rich text.

    Args:
        variables: the app's ``theme_variables``.
    """

    def __init__(self, variables: dict[str, str]) -> None:
        self._variables = variables

    @classmethod
    def of(cls, widget: Widget) -> Self:
        """The colours of a widget's theme."""
        return cls(widget.app.theme_variables)

    def colour(self, name: str) -> str:
        """A theme colour, or the foreground where the theme has no fixed one of that name."""
        value = self._variables.get(name, "")
        return value if value.startswith("#") else self._variables.get("foreground", "#808080")

    def style(self, name: str) -> str:
        """A rich style; names that the theme only knows as ``auto`` are drawn dim."""
        value = self._variables.get(name, "")
        return value if value.startswith("#") else "dim"

    def text(self, content: str, name: str) -> Text:
        """Text in a theme colour."""
        return Text(content, style=self.style(name))

    def mark(self, table: dict[str, tuple[str, str]], state: str) -> Text:
        """Mark and name of a state."""
        sign, tone = table.get(state, UNKNOWN)
        return self.text(f"{sign} {state.lower()}", tone)
