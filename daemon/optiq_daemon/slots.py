"""One adapter version as residency sees it, and the leases that requests hold on it."""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING

from optiq_daemon.names import AdapterKey

if TYPE_CHECKING:
    from optiq_daemon.residency import Residency


class SlotState(enum.Enum):
    """Where one version is."""

    ABSENT = "absent"
    LOADING = "loading"
    RESIDENT = "resident"
    UNLOADING = "unloading"


class Slot:
    """One version, by digest.

    Attributes:
        size: bytes that it takes in the engine; an upper bound before it was there.
        resident_bytes: what the engine says that it takes, 0 while it is not there.
        leases: requests that keep the version alive, those that still wait included.
        users: leases that were let in: while there is one, the version stays in the engine.
        names: adapter names that point to it.
        leaving: an explicit unload was asked for; a new lease takes it back.
        draining: its turn is over and somebody waits for its room: new requests queue behind them.
        turn_began, used_at: of the residency's clock.
        last_use: seconds since the epoch, 0 if it was not used yet.
    """

    def __init__(self, digest: str, size: int) -> None:
        self.digest = digest
        self.size = size
        self.state = SlotState.ABSENT
        self.leases = 0
        self.users = 0
        self.names: set[AdapterKey] = set()
        self.resident_bytes = 0
        self.leaving = False
        self.draining = False
        self.turn_began = 0.0
        self.used_at = 0.0
        self.last_use = 0.0
        self.task: asyncio.Task[None] | None = None
        self.expiry: asyncio.TimerHandle | None = None

    @property
    def wanted(self) -> bool:
        """Whether anything but lack of room speaks for keeping it where it is."""
        return self.leases > 0 or (bool(self.names) and not self.leaving)

    @property
    def entered(self) -> bool:
        """Whether it is in the engine, or on its way there."""
        return self.state in (SlotState.LOADING, SlotState.RESIDENT)

    @property
    def idle(self) -> bool:
        """Whether it could leave the engine now."""
        return self.state is SlotState.RESIDENT and self.users == 0


class Lease:
    """Keeps one version alive for one request; released exactly once, however often it is asked to."""

    def __init__(self, residency: Residency, digest: str) -> None:
        self.digest = digest
        self.using = False
        self._residency: Residency | None = residency

    def release(self) -> None:
        """Give the version up."""
        residency, self._residency = self._residency, None
        if residency is not None:
            residency._release(self)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
