"""A line that narrows a list down as it is typed."""

from __future__ import annotations

from textual.widgets import Input


class FilterBox(Input):
    """Words that all have to occur; case does not matter.

    Args:
        what: what is filtered, for the placeholder.
        id: widget id.
    """

    HELP = "Words that all have to occur in a row, in any order. `escape` or `enter` goes back to the list."

    def __init__(self, what: str, *, id: str) -> None:
        super().__init__(placeholder=f"/ filters {what}", id=id, compact=True, classes="filter")

    def matches(self, text: str) -> bool:
        """Whether all words occur in ``text``."""
        lowered = text.lower()
        return all(word in lowered for word in self.value.lower().split())
