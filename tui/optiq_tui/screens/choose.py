"""Asks for one of several things."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option


class Choose(ModalScreen[str]):
    """A list; enter takes one, escape none (the empty string).

    Args:
        question: one sentence.
        options: what is returned, and what is shown for it.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss('')", "Close", id="choose.close", tooltip="Choose nothing"),
    ]

    def __init__(self, question: str, options: Sequence[tuple[str, Text]]) -> None:
        super().__init__()
        self._question = question
        self._options = options

    def compose(self) -> ComposeResult:
        """The question, and the list in a box."""
        with Vertical(id="choose"):
            yield Static(self._question, id="choose-question", markup=False)
            yield OptionList(*(Option(shown, id=value) for value, shown in self._options))
            yield Static("[b]enter[/b] take it    [b]esc[/b] leave everything as it is", id="choose-keys")

    def on_option_list_option_selected(self, message: OptionList.OptionSelected) -> None:
        """Close with what was chosen."""
        self.dismiss(message.option.id or "")
