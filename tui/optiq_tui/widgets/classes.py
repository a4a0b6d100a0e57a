"""CSS classes that follow what is shown."""

from __future__ import annotations

from textual.dom import DOMNode


def mark(node: DOMNode, wanted: bool, name: str) -> None:
    """Give a node a class, or take it away, at no cost if nothing changes.

    Textual's own ``set_class`` matches all styles again even then.

    Args:
        node: a screen or a widget.
        wanted: whether it is to have the class.
        name: of the class.
    """
    if node.has_class(name) != wanted:
        node.set_class(wanted, name)
