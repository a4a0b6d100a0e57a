"""When to stop waiting for a daemon. Shared by the sync and the async client's ``wait_ready``."""

from __future__ import annotations

import time

from optiq_client.errors import DeadlineExceeded, FailedPrecondition, OptiqClientError
from optiq_client.states import EngineState, HealthStatus
from optiq_client.types import Status

FIRST_DELAY = 0.05
LONGEST_DELAY = 0.5


class Readiness:
    """One wait: collects what the probes found, says how long to sleep, and raises when it is over.

    Args:
        timeout: seconds in all.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._end = time.monotonic() + timeout
        self._delay = FIRST_DELAY
        self._last = "not probed yet"

    @property
    def remaining(self) -> float:
        """Seconds left, at least a tenth, for the deadline of one probe."""
        return max(0.1, self._end - time.monotonic())

    def failed(self, error: OptiqClientError) -> float:
        """A probe failed; seconds to sleep before the next.

        Raises:
            OptiqClientError: ``error``, if trying again cannot help.
            DeadlineExceeded: the time is over.
        """
        if not error.retryable:
            raise error
        return self._next(error.message)

    def not_serving(self, health: HealthStatus, status: Status) -> float:
        """The daemon answers but does not serve yet; seconds to sleep before the next probe.

        Raises:
            FailedPrecondition: the engine cannot start.
            DeadlineExceeded: the time is over.
        """
        engine = status.engine
        if engine.state is EngineState.FAILED:
            raise FailedPrecondition(f"the engine cannot start: {engine.message}", code="FAILED_PRECONDITION")
        return self._next(f"health {health}, engine {engine.state}{f': {engine.message}' if engine.message else ''}")

    def _next(self, found: str) -> float:
        self._last = found
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(
                f"the daemon was not ready after {self._timeout:g} s: {self._last}", code="DEADLINE_EXCEEDED"
            )
        delay = min(self._delay, left)
        self._delay = min(self._delay * 1.5, LONGEST_DELAY)
        return delay
