"""States of adapters and jobs, with the numbers of `optiq.v1`."""

from __future__ import annotations

import enum


class AdapterState(enum.IntEnum):
    """`optiq.v1.AdapterState`."""

    DISCOVERED = 1
    VALIDATING = 2
    AVAILABLE = 3
    LOADING = 4
    RESIDENT = 5
    UNLOADING = 6
    QUARANTINED = 7


class JobState(enum.IntEnum):
    """`optiq.v1.JobState`."""

    QUEUED = 1
    PLANNING = 2
    WAITING = 3
    RUNNING = 4
    PAUSED = 5
    SUCCEEDED = 6
    FAILED = 7
    CANCELLED = 8
    REFUSED = 9

    @property
    def ended(self) -> bool:
        """Whether nothing more happens to the job."""
        return self >= JobState.SUCCEEDED


class EngineState(enum.IntEnum):
    """`optiq.v1.EngineState`."""

    STARTING = 1
    SERVING = 2
    RESTARTING = 3
    FAILED = 4
