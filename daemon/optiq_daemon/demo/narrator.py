"""One line per step on stderr, rewritten in place on a terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Step:
    """A finished step, as the JSON shows it."""

    name: str
    seconds: float
    detail: str


@dataclass
class Narrator:
    """Tells what happens and remembers how long it took.

    Args:
        total: number of steps to come.
    """

    total: int
    steps: list[Step] = field(default_factory=list)
    _detail: str = ""

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Narrator]:
        """Run a block as the next step; its last :meth:`say` becomes the step's detail."""
        began = time.perf_counter()
        number = len(self.steps) + 1
        self._detail = ""
        self._write(f"[{number}/{self.total}] {name} ...", end=True)
        yield self
        seconds = time.perf_counter() - began
        self._write(f"      {self._detail + ', ' if self._detail else ''}{seconds:.1f} s", end=True)
        self.steps.append(Step(name, round(seconds, 2), self._detail))

    def say(self, text: str) -> None:
        """Show where the step is; on a terminal the line is replaced by the next one."""
        self._detail = text
        if sys.stderr.isatty():
            self._write(f"      {text}", end=False)

    def line(self, text: str) -> None:
        """Show a line that stays."""
        self._write(f"      {text}", end=True)

    @staticmethod
    def _write(text: str, *, end: bool) -> None:
        clear = "\r\x1b[2K" if sys.stderr.isatty() else ""
        sys.stderr.write(clear + text + ("\n" if end else ""))
        sys.stderr.flush()
