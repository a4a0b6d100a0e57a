"""Room in the engine: a budget of bytes, who leaves to make some, and a line of requests that wait for it.

The line is served in order, each request with all the versions that it needs at once, so nobody holds one version
while waiting for another. Idle versions leave first, the one used longest ago before the others. Where all are busy,
the version whose turn began first and is over drains: requests that came later queue behind those who wait, so that it
falls idle when its running requests end. More hot adapters than fit are thus served in turns, and all who wait for an
adapter share its turn (LoRAX and SGLang lets incumbents starve newcomers without such a rule).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from optiq_daemon.errors import RefusedError, UnavailableError
from optiq_daemon.slots import Slot, SlotState

TURN_S = 2.0


class _Waiting:
    """A request in line. `seat` is called as soon as its versions are, or are becoming, resident."""

    def __init__(self, slots: tuple[Slot, ...], seat: Callable[[], None]) -> None:
        self.slots = slots
        self.seat = seat
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Room:
    """Decides which versions are in the engine.

    Args:
        pinned: whether a digest's version never makes room.
        load, unload: start moving a version; they report with :meth:`entered` and :meth:`left`.
        turn_s: seconds that a busy version keeps its place while others wait.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        pinned: Callable[[str], bool],
        *,
        load: Callable[[Slot], None],
        unload: Callable[[Slot], None],
        turn_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._pinned = pinned
        self._load = load
        self._unload = unload
        self._turn_s = turn_s
        self._clock = clock
        self._inside: dict[str, Slot] = {}
        self._line: deque[_Waiting] = deque()
        self._coming: dict[str, Slot] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._open = False
        self.budget = 0
        self.evictions = 0

    def open(self, budget: int) -> None:
        """An empty engine is there. A budget of 0 is no limit."""
        self.budget = budget
        self._open = True

    def close(self) -> None:
        """The engine is gone: nothing is inside, and nobody can wait any more."""
        self._open = False
        self._inside.clear()
        self._coming.clear()
        self._set_timer(None)
        line, self._line = self._line, deque()
        for waiting in line:
            if not waiting.turn.done():
                waiting.turn.set_exception(
                    UnavailableError("the engine was restarted while the request waited", reason="ENGINE_LOST")
                )

    @property
    def occupied(self) -> int:
        """Bytes of all versions that are in the engine, coming or leaving."""
        return sum(slot.size for slot in self._inside.values())

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._line)

    def entered(self, slot: Slot) -> None:
        """A version takes room from now."""
        self._inside[slot.digest] = slot

    def left(self, slot: Slot) -> None:
        """A version takes no room any more."""
        self._inside.pop(slot.digest, None)

    def fits(self, size: int) -> bool:
        """Whether so many bytes are free and nobody waits for them."""
        return not self._line and (not self.budget or self.occupied + size <= self.budget)

    def may_enter(self, slots: Iterable[Slot]) -> bool:
        """Whether a request can go ahead without waiting in line."""
        return all(slot.entered and not slot.draining for slot in slots)

    async def wait(self, slots: tuple[Slot, ...], seat: Callable[[], None]) -> None:
        """Wait in line until there is room for all of `slots`; they are loading or resident then.

        Raises:
            RefusedError: they can never fit.
            UnavailableError: the engine died.
        """
        waiting = _Waiting(slots, seat)
        self._line.append(waiting)
        self.advance()
        try:
            await waiting.turn
        finally:
            if waiting in self._line:
                self._line.remove(waiting)
                self.advance()

    def prefetch(self, slot: Slot) -> None:
        """Load a version that is leased and not in use yet, if no leased or pinned one has to leave for it."""
        if slot.state is SlotState.ABSENT:
            self._coming[slot.digest] = slot
            self.advance()

    def advance(self) -> None:
        """Serve the line as far as there is room."""
        if not self._open:
            return
        for slot in self._inside.values():
            slot.draining = False
        self._set_timer(None)
        while self._line and self._serve_first():
            self._let_along()
        if self._line:
            self._make_way()
        else:
            self._serve_coming()

    def _serve_first(self) -> bool:
        """Let the first in line go, or see to it that room is made."""
        first = self._line[0]
        if first.turn.done():
            self._line.popleft()
            return True
        if (problem := self._impossible(first.slots)) is not None:
            self._line.popleft()
            first.turn.set_exception(problem)
            return True
        if not self._make_room(first.slots):
            return False
        self._line.popleft()
        for slot in first.slots:
            slot.draining = False
            if slot.state is SlotState.ABSENT:
                self._load(slot)
            else:
                slot.turn_began = self._clock()
        first.seat()
        first.turn.set_result(None)
        return True

    def _make_way(self) -> None:
        """Send idle versions away for the whole line at once: each unload waits for the engine's step to end."""
        wanted = {slot.digest: slot for waiting in self._line for slot in waiting.slots}
        need = sum(slot.size for slot in wanted.values() if slot.state is SlotState.ABSENT)
        short = self._short_of(need) if self.budget else 0
        for victim in self._idle(tuple(wanted.values())):
            if short <= 0 or victim.leases:
                return
            short -= victim.size
            self._evict(victim)

    def _let_along(self) -> None:
        """Those who wait for what has just got its turn share it."""
        for waiting in [waiting for waiting in self._line if self.may_enter(waiting.slots)]:
            self._line.remove(waiting)
            if not waiting.turn.done():
                waiting.seat()
                waiting.turn.set_result(None)

    def _impossible(self, slots: tuple[Slot, ...]) -> RefusedError | None:
        need = sum(slot.size for slot in slots)
        if not self.budget or need <= self.budget - self._pinned_bytes(slots):
            return None
        if need > self.budget:
            return RefusedError(
                f"the request's adapters take {need} bytes, the budget of adapters in the engine is {self.budget}",
                reason="ADAPTER_OVER_BUDGET",
                metadata={"expected": f"<= {self.budget}", "found": str(need)},
            )
        return RefusedError(
            f"pinned adapters leave no room for {need} bytes in the budget of {self.budget}; unpin one",
            reason="BUDGET_PINNED",
            metadata={"expected": f"<= {self.budget - self._pinned_bytes(slots)}", "found": str(need)},
        )

    def _pinned_bytes(self, besides: tuple[Slot, ...]) -> int:
        return sum(s.size for s in self._inside.values() if s not in besides and self._pinned(s.digest))

    def _make_room(self, slots: tuple[Slot, ...]) -> bool:
        """Whether there is room now; if not, versions are sent away, or drain."""
        if any(slot.state is SlotState.UNLOADING for slot in slots):
            return False
        need = sum(slot.size for slot in slots if slot.state is SlotState.ABSENT)
        if not need or not self.budget or self.occupied + need <= self.budget:
            return True
        short = self._short_of(need)
        for slot in self._idle(slots):
            if short <= 0:
                break
            short -= slot.size
            self._evict(slot)
        if short > 0:
            self._drain(slots, short)
        return False

    def _short_of(self, need: int) -> int:
        """Bytes that are missing once all that is leaving has left."""
        staying = sum(slot.size for slot in self._inside.values() if slot.state is not SlotState.UNLOADING)
        return staying + need - self.budget

    def _idle(self, besides: tuple[Slot, ...]) -> list[Slot]:
        """Versions that can leave now; those that nobody has asked for first, then the longest unused."""
        idle = [s for s in self._inside.values() if s.idle and s not in besides and not self._pinned(s.digest)]
        return sorted(idle, key=lambda slot: (slot.leases > 0, slot.used_at))

    def _evict(self, slot: Slot) -> None:
        self.evictions += 1
        self._unload(slot)

    def _drain(self, besides: tuple[Slot, ...], short: int) -> None:
        busy = [s for s in self._inside.values() if s.entered and s not in besides and not self._pinned(s.digest)]
        now = self._clock()
        for slot in sorted(busy, key=lambda slot: slot.turn_began):
            if short <= 0:
                return
            left = slot.turn_began + self._turn_s - now
            if left > 0:
                self._set_timer(left)
                return
            slot.draining = True
            short -= slot.size

    def _serve_coming(self) -> None:
        for digest, slot in list(self._coming.items()):
            if slot.state is SlotState.UNLOADING:
                continue
            if slot.entered or slot.leases == 0:
                del self._coming[digest]
                continue
            if self.fits(slot.size):
                del self._coming[digest]
                self._load(slot)
                continue
            short = self._short_of(slot.size)
            unasked = [s for s in self._idle((slot,)) if s.leases == 0]
            if short > sum(s.size for s in unasked):
                # They are loaded when it is their turn.
                self._coming.clear()
                return
            for victim in unasked:
                if short <= 0:
                    break
                short -= victim.size
                self._evict(victim)
            return

    def _set_timer(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self.advance)
