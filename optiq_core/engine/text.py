"""Turns a row's tokens into text, and ends it before a stop string."""

from __future__ import annotations

from typing import Any


class TextStream:
    """Detokenizes one row; holds back text that may be the beginning of a stop string.

    Args:
        tokenizer: mlx-lm's tokenizer wrapper.
        stops: texts before which the row ends; none empty.
    """

    def __init__(self, tokenizer: Any, stops: tuple[str, ...]) -> None:
        self._detokenizer = tokenizer.detokenizer
        self._stops = stops
        self._held = ""

    def push(self, token: int) -> tuple[str, bool]:
        """Take a token; return the text that may be shown and whether a stop string was reached."""
        self._detokenizer.add_token(token)
        return self._release(self._detokenizer.last_segment, last=False)

    def finish(self) -> tuple[str, bool]:
        """Return what is left, and whether it ends in a stop string."""
        self._detokenizer.finalize()
        return self._release(self._detokenizer.last_segment, last=True)

    def _release(self, segment: str, *, last: bool) -> tuple[str, bool]:
        if not self._stops:
            return segment, False
        text = self._held + segment
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = 0 if last else max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of ``text`` that begins ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
