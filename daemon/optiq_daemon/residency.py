"""Which versions are in the engine, who uses them, and when they leave.

A version stays while a name points to it or a request leases it. Loads and unloads belong to this module, not to the
request that caused them: waiters share one load, and a cancelled waiter takes nobody's load away. Everything here runs
on the event loop; between two awaits nothing else can change a slot.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from optiq_core.errors import OptiqError
from optiq_daemon.errors import RefusedError, UnavailableError
from optiq_daemon.names import AdapterKey
from optiq_daemon.tasks import Tasks

log = logging.getLogger(__name__)

FIRST_RETRY_S = 0.02
LAST_RETRY_S = 1.0


class Engine(Protocol):
    """What residency needs of an engine process."""

    async def load(self, digest: str, path: Path) -> int:
        """Put a version into the engine; returns its bytes there."""

    async def unload(self, digest: str) -> None:
        """Take it out; RefusedError while rows use it."""


class SlotState(enum.Enum):
    """Where one version is."""

    ABSENT = "absent"
    LOADING = "loading"
    RESIDENT = "resident"
    UNLOADING = "unloading"


class Slot:
    """One version, by digest."""

    def __init__(self, digest: str) -> None:
        self.digest = digest
        self.state = SlotState.ABSENT
        self.leases = 0
        self.names: set[AdapterKey] = set()
        self.resident_bytes = 0
        # An explicit unload was asked for; a new lease takes it back.
        self.leaving = False
        self.task: asyncio.Task[None] | None = None

    @property
    def wanted(self) -> bool:
        """Whether it should stay where it is."""
        return self.leases > 0 or (bool(self.names) and not self.leaving)


class Lease:
    """Keeps one version alive for one request; released exactly once, however often it is asked to."""

    def __init__(self, residency: Residency, digest: str) -> None:
        self.digest = digest
        self._residency: Residency | None = residency

    def release(self) -> None:
        """Give the version up."""
        residency, self._residency = self._residency, None
        if residency is not None:
            residency._release(self.digest)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Residency:
    """The table of versions.

    Args:
        locate: folder of a version in the store.
        changed: called with the digest whenever its slot changed.
        freed: called with a digest that neither a name nor a lease holds and that has left the engine.
    """

    def __init__(
        self, locate: Callable[[str], Path], changed: Callable[[str], None], freed: Callable[[str], None]
    ) -> None:
        self._locate = locate
        self._changed = changed
        self._freed = freed
        self._slots: dict[str, Slot] = {}
        self._engine: Engine | None = None
        self._epoch = 0
        self._tasks = Tasks()

    def attach(self, engine: Engine) -> None:
        """A fresh engine is there; nothing is in it."""
        self.detach()
        self._engine = engine

    def detach(self) -> None:
        """The engine is gone, and everything in it."""
        self._engine = None
        self._epoch += 1
        for slot in list(self._slots.values()):
            slot.state, slot.task, slot.resident_bytes = SlotState.ABSENT, None, 0
            self._changed(slot.digest)
            self._settle(slot)

    async def close(self) -> None:
        """End what is under way."""
        await self._tasks.cancel()

    def slot(self, digest: str) -> Slot | None:
        """The slot of a version that something holds."""
        return self._slots.get(digest)

    def bind(self, key: AdapterKey, digest: str) -> None:
        """Point a name to a version, and away from the one before; an empty digest points nowhere."""
        for slot in [slot for slot in self._slots.values() if key in slot.names and slot.digest != digest]:
            slot.names.discard(key)
            self._settle(slot)
        if digest:
            self._made(digest).names.add(key)

    def lease(self, digest: str) -> Lease:
        """Hold a version; it need not be in the engine yet."""
        slot = self._made(digest)
        slot.leases += 1
        slot.leaving = False
        if slot.leases == 1:
            self._changed(digest)
        return Lease(self, digest)

    async def ensure(self, digest: str) -> None:
        """Return once a leased version is in the engine.

        Raises:
            UnavailableError: there is no engine, or it died meanwhile.
            RequestError: the engine refused it.
        """
        while True:
            slot = self._slots[digest]
            if slot.state is SlotState.RESIDENT:
                return
            if slot.state is SlotState.ABSENT:
                if self._engine is None:
                    raise UnavailableError("the engine is not serving yet", reason="ENGINE_NOT_SERVING")
                self._begin(slot, SlotState.LOADING)
            assert slot.task is not None
            # Shielded: the task is everybody's. A failed unload is not this caller's business.
            if slot.state is SlotState.UNLOADING:
                await asyncio.wait([slot.task])
            else:
                await asyncio.shield(slot.task)

    def forget_resident(self, digest: str) -> None:
        """The engine said that it does not hold this version after all."""
        slot = self._slots.get(digest)
        if slot is not None and slot.state is SlotState.RESIDENT:
            slot.state, slot.resident_bytes = SlotState.ABSENT, 0
            self._changed(digest)

    async def unload(self, digest: str) -> None:
        """Take a version out after its last lease; returns at once if it has leases."""
        slot = self._slots.get(digest)
        if slot is None:
            return
        slot.leaving = True
        if slot.state is SlotState.LOADING and slot.task is not None:
            await asyncio.wait([slot.task])
        self._changed(digest)
        self._settle(slot)
        if slot.state is SlotState.UNLOADING and slot.task is not None:
            await asyncio.wait([slot.task], timeout=5)

    def _made(self, digest: str) -> Slot:
        return self._slots.setdefault(digest, Slot(digest))

    def _release(self, digest: str) -> None:
        slot = self._slots[digest]
        slot.leases -= 1
        if slot.leases == 0:
            self._changed(digest)
            self._settle(slot)

    def _settle(self, slot: Slot) -> None:
        """Let a slot go that nothing wants; a slot that is on its way settles when it arrives."""
        if slot.wanted or self._slots.get(slot.digest) is not slot:
            return
        if slot.state is SlotState.RESIDENT:
            self._begin(slot, SlotState.UNLOADING)
        elif slot.state is SlotState.ABSENT:
            slot.leaving = False
            if not slot.names:
                del self._slots[slot.digest]
                self._freed(slot.digest)

    def _begin(self, slot: Slot, state: SlotState) -> None:
        assert self._engine is not None
        work = self._load if state is SlotState.LOADING else self._unload
        slot.state = state
        slot.task = self._tasks.start(
            work(slot, self._engine, self._epoch), f"{state.value} {slot.digest[:12]}", expected=(OptiqError,)
        )
        self._changed(slot.digest)

    async def _load(self, slot: Slot, engine: Engine, epoch: int) -> None:
        try:
            size = await engine.load(slot.digest, self._locate(slot.digest))
        except BaseException:
            self._arrive(slot, epoch, SlotState.ABSENT, 0)
            raise
        if not self._arrive(slot, epoch, SlotState.RESIDENT, size):
            raise UnavailableError("the engine was restarted while the adapter was loaded", reason="ENGINE_LOST")

    async def _unload(self, slot: Slot, engine: Engine, epoch: int) -> None:
        pause = FIRST_RETRY_S
        while True:
            try:
                await engine.unload(slot.digest)
            except RefusedError:
                # A cancelled row leaves at the engine's next step, a moment after its lease was released.
                await asyncio.sleep(pause)
                pause = min(2 * pause, LAST_RETRY_S)
                if slot.wanted or epoch != self._epoch:
                    self._arrive(slot, epoch, SlotState.RESIDENT, slot.resident_bytes)
                    return
            except BaseException as error:
                log.warning("unload of %s failed: %s", slot.digest[:12], error)
                self._arrive(slot, epoch, SlotState.ABSENT, 0)
                raise
            else:
                self._arrive(slot, epoch, SlotState.ABSENT, 0)
                return

    def _arrive(self, slot: Slot, epoch: int, state: SlotState, size: int) -> bool:
        """Note where a slot got to, unless the engine that it was under way to is gone."""
        if epoch != self._epoch:
            return False
        slot.state, slot.task, slot.resident_bytes = state, None, size
        self._changed(slot.digest)
        self._settle(slot)
        return True
