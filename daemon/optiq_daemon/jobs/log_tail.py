"""The end of a trainer's log, and what is added to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

POLL_S = 0.3
# What is read back from the end at most, and sent in one message.
MAX_READ_BYTES = 1 << 20


class LogTail:
    """Reads whole lines; a log that is not there yet is empty, one that was replaced is read from its beginning.

    Args:
        path: of the log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._inode = 0
        self._rest = b""

    def last(self, count: int) -> list[str]:
        """The last ``count`` lines of what is there; :meth:`added` goes on behind them."""
        inode, size = self._identity()
        begin = max(0, size - MAX_READ_BYTES)
        self._inode, self._offset = inode, begin
        lines = self.added()
        # Where the reading begins in the middle of a line, that line is not whole.
        whole = lines[1:] if begin else lines
        return whole[-count:] if count else []

    def added(self) -> list[str]:
        """Lines that were finished since the last call."""
        inode, size = self._identity()
        if inode != self._inode or size < self._offset:
            self._inode, self._offset, self._rest = inode, 0, b""
        if size <= self._offset:
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            content = file.read(MAX_READ_BYTES)
        self._offset += len(content)
        *whole, self._rest = (self._rest + content).split(b"\n")
        return [line.decode("utf-8", "replace") for line in whole]

    def _identity(self) -> tuple[int, int]:
        try:
            info = self._path.stat()
        except OSError:
            return 0, 0
        return info.st_ino, info.st_size


async def tail(path: Path, count: int, ended: Callable[[], bool], *, follow: bool) -> AsyncIterator[list[str]]:
    """The last lines of a log, then what is added.

    Args:
        count: lines to begin with.
        ended: whether nothing will be added any more.
        follow: go on until then.
    """
    log = LogTail(path)
    if lines := await asyncio.to_thread(log.last, count):
        yield lines
    while follow:
        # Asked before reading: what was written before the end is still read.
        is_over = ended()
        while lines := await asyncio.to_thread(log.added):
            yield lines
        if is_over:
            return
        await asyncio.sleep(POLL_S)
