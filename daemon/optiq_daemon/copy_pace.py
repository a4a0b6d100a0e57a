"""How fast a burst of folders is copied and checked: at full speed while nothing is generated, else a little at a time.

Copying, hashing and looking at every number takes processor time that running streams need. Beside them a place that
has been used rests a multiple of the time that its copy took. The first folders of a burst do not wait, nor does one
that comes alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

PLACES = 4
# With four places, a quarter of one core.
REST = 15.0
LONGEST_REST_S = 2.0


class CopyPace:
    """Places in which folders are copied; lives on the event loop.

    Args:
        busy: whether requests run now.
    """

    def __init__(self, busy: Callable[[], bool]) -> None:
        self._busy = busy
        self._places = asyncio.Semaphore(PLACES)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a place and hold it."""
        await self._places.acquire()
        began = time.monotonic()
        try:
            yield
        finally:
            rest = min(LONGEST_REST_S, REST * (time.monotonic() - began)) if self._busy() else 0.0
            asyncio.get_running_loop().call_later(rest, self._places.release)
