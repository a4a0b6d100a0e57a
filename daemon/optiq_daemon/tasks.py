"""Background tasks that are kept referenced and whose failures are logged."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from optiq_daemon.errors import log_unexpected


def was_cancelled() -> bool:
    """Whether somebody asked the running task to end; false for a CancelledError that came out of what it awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Tasks:
    """Owns the background tasks of one component."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(
        self, coroutine: Coroutine[Any, Any, Any], name: str, *, expected: tuple[type[Exception], ...] = ()
    ) -> asyncio.Task[Any]:
        """Run `coroutine`; an exception that it ends with is logged, not lost.

        Args:
            expected: exceptions that those who await the task deal with.
        """
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._done(done, expected))
        return task

    async def cancel(self) -> None:
        """Cancel all that still run and wait until they have ended."""
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[Any], expected: tuple[type[Exception], ...]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, expected):
            log_unexpected(task.get_name(), error)
