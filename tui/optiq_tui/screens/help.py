"""What has the focus, what it is for, and every key that works now."""

from __future__ import annotations

from inspect import cleandoc
from typing import Any, ClassVar

from rich.table import Table as RichTable
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widgets import Markdown, Static

from optiq_tui.settings import settings_path


class Help(ModalScreen[None]):
    """Closes with escape.

    Args:
        below: the screen that the help is about.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q", "dismiss", "Close", id="help.close", tooltip="Close the help"),
    ]

    def __init__(self, below: Screen[Any]) -> None:
        super().__init__()
        focused = below.focused
        self._what = cleandoc((focused.HELP if focused is not None else None) or below.HELP or "")
        self._rows = [
            (self._display(below, active.binding), active.binding.tooltip or active.binding.description, active.binding)
            for active in below.active_bindings.values()
            if active.enabled and active.binding.id
        ]

    def compose(self) -> ComposeResult:
        """Text above, keys below."""
        keys = RichTable.grid(padding=(0, 2))
        seen = set()
        for key, what, binding in self._rows:
            if binding.id not in seen:
                keys.add_row(f"[b]{key}[/b]", what, f"[dim]{binding.id}[/dim]")
                seen.add(binding.id)
        with VerticalScroll(id="help"):
            if self._what:
                yield Markdown(self._what)
            yield Static(keys, id="help-keys")
            yield Static(f"Other keys: [keys] in {settings_path()}", id="help-file", markup=False)

    @staticmethod
    def _display(below: Screen[Any], binding: Binding) -> str:
        return below.app.get_key_display(binding)
