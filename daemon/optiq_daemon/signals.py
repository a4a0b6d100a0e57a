"""A broadcast for coroutines that wait for "something has changed"."""

from __future__ import annotations

import asyncio


class Changed:
    """Wakes everyone who waits, without queues, so that nobody slow can hold anyone up.

    A waiter takes `ticket` before it looks at the state and waits on the ticket afterwards: a change between the two
    is never lost. Not thread-safe: use it from the event loop only.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ticket(self) -> asyncio.Event:
        """An event that is set by the next :meth:`notify`."""
        return self._event

    def notify(self) -> None:
        """Wake all who hold a ticket."""
        event, self._event = self._event, asyncio.Event()
        event.set()


async def first_of(*tickets: asyncio.Event) -> None:
    """Return when one of the tickets is set."""
    waiting = [asyncio.ensure_future(ticket.wait()) for ticket in tickets]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in waiting:
            one.cancel()
