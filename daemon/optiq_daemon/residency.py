"""Which versions are in the engine, who uses them, and when they leave.

A version may stay while a name points to it or a request leases it, and does stay while a request that was let in
holds it. What is in the engine together fits a budget of bytes: the version that was used longest ago makes room,
pinned ones never do. Loads and unloads belong to this module, not to the request that caused them: waiters share one
load, and a cancelled waiter takes nobody's load away. Who waits for room, and in which order, is
:mod:`optiq_daemon.room`'s. Everything here runs on the event loop; between two awaits nothing else can change a slot.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from optiq_core.errors import OptiqError
from optiq_daemon.errors import RefusedError, UnavailableError
from optiq_daemon.mounting import Catalog, Engine, OnLoad
from optiq_daemon.names import AdapterKey
from optiq_daemon.room import TURN_S, Room
from optiq_daemon.slots import Lease, Slot, SlotState
from optiq_daemon.tasks import Tasks

log = logging.getLogger(__name__)

FIRST_RETRY_S = 0.02
LAST_RETRY_S = 1.0


class Residency:
    """The table of versions.

    Args:
        turn_s: seconds that a version may stay busy while others wait for its room.
        clock: monotonic seconds.
    """

    def __init__(
        self, catalog: Catalog, *, turn_s: float = TURN_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._catalog = catalog
        self._clock = clock
        self._slots: dict[str, Slot] = {}
        self._engine: Engine | None = None
        self._epoch = 0
        self._tasks = Tasks()
        self.loads = 0
        self._told: list[OnLoad] = []
        self.room = Room(catalog.pinned, load=self._start_load, unload=self._start_unload, turn_s=turn_s, clock=clock)

    def on_load(self, told: OnLoad) -> None:
        """Tell `told` of every load that succeeds from now on."""
        self._told.append(told)

    def attach(self, engine: Engine, budget: int = 0) -> None:
        """A fresh engine is there; nothing is in it.

        Args:
            budget: bytes of versions that may be in it together; 0 for no limit.
        """
        self.detach()
        self._engine = engine
        self.room.open(budget)

    def detach(self) -> None:
        """The engine is gone, and everything in it."""
        self._engine = None
        self._epoch += 1
        self.room.close()
        for slot in list(self._slots.values()):
            slot.state, slot.task, slot.resident_bytes = SlotState.ABSENT, None, 0
            self._catalog.changed(slot.digest)
            self._settle(slot)

    async def close(self) -> None:
        """End what is under way."""
        self.room.close()
        for slot in self._slots.values():
            _disarm(slot)
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

    def lease(self, digest: str, size: int = 0) -> Lease:
        """Hold a version; it need not be in the engine yet.

        Args:
            size: bytes that it takes there at most, for one that the catalog does not know yet.
        """
        slot = self._made(digest, size)
        slot.leases += 1
        slot.leaving = False
        if slot.leases == 1:
            self._catalog.changed(digest)
        return Lease(self, digest)

    async def enter(self, *leases: Lease) -> None:
        """Return once all these leased versions are in the engine; they stay there until the leases are released.

        All or none: a request that needs several versions never holds one while it waits for another.

        Raises:
            UnavailableError: there is no engine, or it died meanwhile.
            RefusedError: they can never fit the budget, or the engine refused one.
        """
        if self._engine is None:
            raise UnavailableError("the engine is not serving yet", reason="ENGINE_NOT_SERVING")
        slots = {lease.digest: self._slots[lease.digest] for lease in leases}
        try:
            if not self.room.may_enter(slots.values()):
                await self.room.wait(tuple(slots.values()), lambda: self._use(leases))
            self._use(leases)
            for slot in slots.values():
                await self._arrival(slot)
        except BaseException:
            for lease in leases:
                self._unuse(lease)
            raise

    def prefetch(self, digest: str) -> None:
        """A request for this version is on its way: load it if that takes no room from anybody who needs it."""
        slot = self._slots.get(digest)
        if slot is not None and self._engine is not None:
            self.room.prefetch(slot)

    def has_room(self, digest: str) -> bool:
        """Whether a version is in the engine or could be loaded without taking another's room."""
        slot = self._made(digest)
        return slot.entered or self.room.fits(slot.size)

    def policy_changed(self, digest: str) -> None:
        """The catalog's answers about a version are other than before."""
        slot = self._slots.get(digest)
        if slot is not None:
            self._arm(slot)
        self.room.advance()

    def forget_resident(self, digest: str) -> None:
        """The engine said that it does not hold this version after all."""
        slot = self._slots.get(digest)
        if slot is not None and slot.state is SlotState.RESIDENT:
            slot.state, slot.resident_bytes = SlotState.ABSENT, 0
            self.room.left(slot)
            self._catalog.changed(digest)

    async def unload(self, digest: str) -> None:
        """Take a version out of the engine after its last lease; returns at once if there are leases."""
        slot = self._slots.get(digest)
        if slot is None:
            return
        slot.leaving = True
        if slot.state is SlotState.LOADING and slot.task is not None:
            await asyncio.wait([slot.task])
        self._catalog.changed(digest)
        self._settle(slot)
        if slot.state is SlotState.UNLOADING and slot.task is not None:
            await asyncio.wait([slot.task], timeout=5)

    def _made(self, digest: str, size: int = 0) -> Slot:
        slot = self._slots.get(digest)
        if slot is None:
            slot = self._slots[digest] = Slot(digest, max(1, size or self._catalog.size(digest)))
        return slot

    def _use(self, leases: tuple[Lease, ...]) -> None:
        for lease in leases:
            if not lease.using:
                lease.using = True
                slot = self._slots[lease.digest]
                slot.users += 1
                slot.used_at, slot.last_use = self._clock(), time.time()
                _disarm(slot)

    def _unuse(self, lease: Lease) -> None:
        if lease.using:
            lease.using = False
            slot = self._slots[lease.digest]
            slot.users -= 1
            slot.used_at, slot.last_use = self._clock(), time.time()
            self._arm(slot)
            self.room.advance()

    def _release(self, lease: Lease) -> None:
        slot = self._slots[lease.digest]
        slot.leases -= 1
        self._unuse(lease)
        if slot.leases == 0:
            self._catalog.changed(slot.digest)
            self._settle(slot)

    async def _arrival(self, slot: Slot) -> None:
        while slot.state is not SlotState.RESIDENT:
            if slot.state is not SlotState.LOADING or slot.task is None:
                raise UnavailableError("the engine was restarted while the adapter was loaded", reason="ENGINE_LOST")
            # Shielded: the task is everybody's.
            await asyncio.shield(slot.task)

    def _settle(self, slot: Slot) -> None:
        """Let a slot go that nothing wants; a slot that is on its way settles when it arrives."""
        if slot.wanted or self._slots.get(slot.digest) is not slot:
            return
        if slot.state is SlotState.RESIDENT:
            self._start_unload(slot)
        elif slot.state is SlotState.ABSENT:
            slot.leaving = False
            if not slot.names:
                del self._slots[slot.digest]
                self._catalog.freed(slot.digest)

    def _arm(self, slot: Slot) -> None:
        """Let an idle version leave when its keep-alive is over."""
        _disarm(slot)
        seconds = self._catalog.keep_alive_s(slot.digest)
        if slot.idle and seconds > 0 and not self._catalog.pinned(slot.digest):
            slot.expiry = asyncio.get_running_loop().call_later(seconds, self._expire, slot)

    def _expire(self, slot: Slot) -> None:
        if slot.idle and slot.leases == 0:
            self._start_unload(slot)

    def _start_load(self, slot: Slot) -> None:
        self.loads += 1
        slot.turn_began = slot.used_at = self._clock()
        self._begin(slot, SlotState.LOADING)

    def _start_unload(self, slot: Slot) -> None:
        _disarm(slot)
        self._begin(slot, SlotState.UNLOADING)

    def _begin(self, slot: Slot, state: SlotState) -> None:
        assert self._engine is not None
        work = self._load if state is SlotState.LOADING else self._unload
        slot.state = state
        self.room.entered(slot)
        slot.task = self._tasks.start(
            work(slot, self._engine, self._epoch), f"{state.value} {slot.digest[:12]}", expected=(OptiqError,)
        )
        self._catalog.changed(slot.digest)

    async def _load(self, slot: Slot, engine: Engine, epoch: int) -> None:
        began, clock = time.time(), time.perf_counter()
        try:
            size = await engine.load(slot.digest, self._catalog.path(slot.digest))
        except BaseException:
            self._arrive(slot, epoch, SlotState.ABSENT, 0)
            raise
        if not self._arrive(slot, epoch, SlotState.RESIDENT, size):
            raise UnavailableError("the engine was restarted while the adapter was loaded", reason="ENGINE_LOST")
        for told in self._told:
            told(slot.digest, began, time.perf_counter() - clock)
        self._catalog.loaded(slot.digest)

    async def _unload(self, slot: Slot, engine: Engine, epoch: int) -> None:
        pause = FIRST_RETRY_S
        while True:
            try:
                await engine.unload(slot.digest)
            except RefusedError:
                # A cancelled row leaves at the engine's next step, a moment after its lease was released.
                await asyncio.sleep(pause)
                pause = min(2 * pause, LAST_RETRY_S)
                if slot.leases > 0 or epoch != self._epoch:
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
        if state is SlotState.ABSENT:
            self.room.left(slot)
        elif size:
            slot.size = size
        self._catalog.changed(slot.digest)
        self._settle(slot)
        self._arm(slot)
        self.room.advance()
        return True


def _disarm(slot: Slot) -> None:
    if slot.expiry is not None:
        slot.expiry.cancel()
        slot.expiry = None
