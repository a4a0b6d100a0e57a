"""Reads the daemon's log files: their last lines in order of time, and what is added to them."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.2

# How the lines of our logs begin, plain and as JSON; what does not begin so belongs to the line before.
_STAMP = re.compile(r"(?:\{\"time\":\")?(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d[,.]\d{3})")


@dataclass(frozen=True)
class LogFile:
    """One log and what to call it."""

    name: str
    path: Path


@dataclass(frozen=True)
class LogLine:
    """A line, whose log it is, and when it was written; lines of a stack trace have the time of their first."""

    name: str
    stamp: str
    text: str


def last_lines(logs: Sequence[LogFile], count: int) -> list[LogLine]:
    """The last `count` lines of all logs together, in order of time."""
    lines: list[LogLine] = []
    for log in logs:
        stamp = ""
        recent: deque[LogLine] = deque(maxlen=count)
        for text in _read(log.path):
            stamp = _stamp(text) or stamp
            recent.append(LogLine(log.name, stamp, text))
        lines += recent
    return sorted(lines, key=lambda line: line.stamp)[-count:] if count else []


class Added:
    """Lines as they are written, forever, from the moment that this is made."""

    def __init__(self, logs: Sequence[LogFile]) -> None:
        self._tails = [_Tail(log) for log in logs]

    def __iter__(self) -> Iterator[LogLine]:
        while True:
            found = [line for tail in self._tails for line in tail.read()]
            yield from sorted(found, key=lambda line: line.stamp)
            if not found:
                time.sleep(POLL_S)


class _Tail:
    """The end of one log, which may be replaced by a new file, or come to be later."""

    def __init__(self, log: LogFile) -> None:
        self._log = log
        self._inode, self._offset = _identity(log.path)
        self._rest = ""
        self._last = ""

    def read(self) -> list[LogLine]:
        """Whole lines that are new."""
        inode, size = _identity(self._log.path)
        if inode != self._inode or size < self._offset:
            self._inode, self._offset, self._rest = inode, 0, ""
        if size <= self._offset:
            return []
        with self._log.path.open("rb") as file:
            file.seek(self._offset)
            content = file.read(size - self._offset)
        self._offset += len(content)
        *whole, self._rest = (self._rest + content.decode("utf-8", "replace")).split("\n")
        lines = []
        for text in whole:
            self._last = _stamp(text) or self._last
            lines.append(LogLine(self._log.name, self._last, text))
        return lines


def _identity(path: Path) -> tuple[int, int]:
    try:
        info = path.stat()
    except OSError:
        return 0, 0
    return info.st_ino, info.st_size


def _read(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []


def _stamp(text: str) -> str:
    match = _STAMP.match(text)
    return match[1].replace("T", " ").replace(".", ",") if match else ""
