"""Every key of the dashboard, by the id that a settings file remaps it with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from textual.binding import Binding
from textual.dom import DOMNode


@dataclass(frozen=True)
class Key:
    """One binding.

    Attributes:
        id: what ``tui.toml`` calls it.
        keys: comma-separated, as Textual names them.
        what: one line.
        where: class that it belongs to.
    """

    id: str
    keys: str
    what: str
    where: str


def all_keys() -> list[Key]:
    """Every binding of ours, in the order of screens and widgets."""
    return [
        Key(binding.id, binding.key, binding.tooltip or binding.description, owner.__name__)
        for owner in _owners()
        for binding in _bindings(owner)
        if binding.id
    ]


def _owners() -> tuple[type[DOMNode], ...]:
    from optiq_tui.app import OptiqApp
    from optiq_tui.screens import CLASSES
    from optiq_tui.widgets import KEYED

    return (OptiqApp, *CLASSES, *KEYED)


def _bindings(owner: type[DOMNode]) -> Iterator[Binding]:
    for binding in owner.__dict__.get("BINDINGS", ()):
        assert isinstance(binding, Binding), f"{owner.__name__} has a key without an id"
        yield binding
