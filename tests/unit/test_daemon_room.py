"""The budget: who leaves, who waits, and that everybody gets a turn; random histories against a state machine."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from optiq_daemon.errors import RefusedError, UnavailableError
from optiq_daemon.names import AdapterKey
from optiq_daemon.residency import Residency
from optiq_daemon.slots import Lease
from tests.unit.test_daemon_residency import Bench, Catalog, settle

DIGESTS = [f"d{n}" for n in range(6)]


def bound(budget: int, turn_s: float = 0.0) -> Bench:
    bench = Bench(budget, turn_s)
    bench.engine.size = bench.catalog.size
    for digest in DIGESTS:
        bench.residency.bind(AdapterKey("default", digest), digest)
    return bench


async def test_the_longest_unused_makes_room_and_pinned_ones_stay() -> None:
    bench = bound(3)
    bench.catalog.pins.add("d0")
    for digest in ("d0", "d1", "d2", "d1", "d3"):
        await bench.ensure(digest)
    assert bench.engine.loaded == {"d0", "d1", "d3"} and bench.engine.unloads == ["d2"]
    await bench.ensure("d4")
    assert bench.engine.loaded == {"d0", "d3", "d4"}
    assert bench.residency.room.evictions == 2


async def test_a_version_in_use_is_not_evicted_and_who_waits_gets_its_room() -> None:
    bench = bound(1)
    lease = bench.residency.lease("d0")
    await bench.residency.enter(lease)
    waiting = asyncio.create_task(bench.ensure("d1"))
    await settle()
    assert not waiting.done() and bench.engine.loaded == {"d0"} and not bench.engine.unloads
    lease.release()
    await waiting
    assert bench.engine.loaded == {"d1"}


async def test_room_is_made_for_the_whole_line_at_once() -> None:
    bench = bound(3)
    for digest in ("d0", "d1", "d2"):
        await bench.ensure(digest)
    bench.engine.gate.clear()
    waiting = [asyncio.create_task(bench.ensure(digest)) for digest in ("d3", "d4")]
    await settle()
    assert bench.engine.unloads == ["d0", "d1"], "not one after the other, and no more than are needed"
    bench.engine.gate.set()
    await asyncio.gather(*waiting)
    assert bench.engine.loaded == {"d2", "d3", "d4"}


async def test_what_never_fits_is_refused_with_the_numbers() -> None:
    bench = bound(4)
    bench.catalog.sizes = {"big": 5, "half": 3}
    with pytest.raises(RefusedError) as caught:
        await bench.ensure("big")
    assert caught.value.reason == "ADAPTER_OVER_BUDGET" and caught.value.metadata["found"] == "5"
    bench.catalog.pins.update(("d0", "d1"))
    for digest in ("d0", "d1"):
        await bench.ensure(digest)
    with pytest.raises(RefusedError) as caught:
        await bench.ensure("half")
    assert caught.value.reason == "BUDGET_PINNED"
    assert bench.residency.slot("half") is None and bench.residency.room.waiting == 0


async def test_a_busy_incumbent_does_not_starve_a_newcomer() -> None:
    bench = bound(1)
    incumbents = [bench.residency.lease("d0") for _ in range(3)]
    for lease in incumbents:
        await bench.residency.enter(lease)
    newcomer = asyncio.create_task(bench.ensure("d1"))
    await settle()
    # From here on the incumbent's new requests queue behind the newcomer.
    late = [bench.residency.lease("d0") for _ in range(2)]
    later = [asyncio.create_task(bench.residency.enter(lease)) for lease in late]
    await settle()
    assert not any(task.done() for task in later)
    for lease in incumbents:
        lease.release()
    await newcomer
    # All who wait for one adapter share its turn, and one load.
    await asyncio.gather(*later)
    assert bench.engine.loads == ["d0", "d1", "d0"]
    for lease in late:
        lease.release()


async def test_a_turn_is_not_cut_short() -> None:
    bench = bound(1, turn_s=0.05)
    lease = bench.residency.lease("d0")
    await bench.residency.enter(lease)
    newcomer = asyncio.create_task(bench.ensure("d1"))
    await settle()
    with bench.residency.lease("d0") as second:
        await bench.residency.enter(second)
    await asyncio.sleep(0.1)
    with bench.residency.lease("d0") as third:
        entering = asyncio.create_task(bench.residency.enter(third))
        await settle()
        assert not entering.done(), "the turn is over"
        lease.release()
        await newcomer
        await entering


async def test_a_request_for_several_holds_none_while_it_waits() -> None:
    bench = bound(2)
    pairs = [[bench.residency.lease(a), bench.residency.lease(b)] for a, b in (("d0", "d1"), ("d1", "d2"))]
    await bench.residency.enter(*pairs[0])
    second = asyncio.create_task(bench.residency.enter(*pairs[1]))
    await settle()
    assert bench.residency.slot("d1").users == 1  # type: ignore[union-attr]
    for lease in pairs[0]:
        lease.release()
    await second
    assert bench.engine.loaded == {"d1", "d2"}
    for lease in pairs[1]:
        lease.release()


async def test_a_prefetch_takes_room_only_from_what_nobody_asked_for() -> None:
    bench = bound(2)
    for digest in ("d0", "d1"):
        await bench.ensure(digest)
    leases = [bench.residency.lease(digest) for digest in ("d2", "d3", "d4")]
    for lease in leases:
        bench.residency.prefetch(lease.digest)
        await settle()
    assert bench.engine.loaded == {"d2", "d3"}, "the third request's adapter waits for its turn"
    await bench.residency.enter(leases[2])
    assert "d4" in bench.engine.loaded
    for lease in leases:
        lease.release()


async def test_a_waiter_that_gives_up_leaves_the_line() -> None:
    bench = bound(1)
    lease = bench.residency.lease("d0")
    await bench.residency.enter(lease)
    waiting = asyncio.create_task(bench.ensure("d1"))
    await settle()
    waiting.cancel()
    await settle()
    assert bench.residency.room.waiting == 0 and not bench.residency.slot("d0").draining  # type: ignore[union-attr]
    lease.release()


async def test_an_engine_that_dies_tells_those_in_line() -> None:
    bench = bound(1)
    lease = bench.residency.lease("d0")
    await bench.residency.enter(lease)
    waiting = asyncio.create_task(bench.ensure("d1"))
    await settle()
    bench.residency.detach()
    with pytest.raises(UnavailableError):
        await waiting
    lease.release()


async def test_an_unused_version_leaves_after_its_keep_alive() -> None:
    bench = bound(0)
    bench.catalog.keep = {"d0": 0.03, "d1": 0.03}
    bench.catalog.pins.add("d1")
    for digest in ("d0", "d1", "d2"):
        await bench.ensure(digest)
    lease = bench.residency.lease("d0")
    await bench.residency.enter(lease)
    await asyncio.sleep(0.08)
    assert bench.engine.loaded == {"d0", "d1", "d2"}, "it is in use"
    lease.release()
    await asyncio.sleep(0.08)
    assert bench.engine.loaded == {"d1", "d2"} and not bench.freed
    await bench.ensure("d0")
    assert "d0" in bench.engine.loaded


class SteppedEngine:
    """An engine whose loads and unloads end when the test says so."""

    def __init__(self) -> None:
        self.loaded: set[str] = set()
        self.in_use: Counter[str] = Counter()
        self.pending: list[asyncio.Future[None]] = []

    async def _step(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pending.append(future)
        await future

    async def load(self, digest: str, path: Path) -> int:
        await self._step()
        assert digest not in self.loaded, "loaded twice"
        self.loaded.add(digest)
        return SIZES[digest]

    async def unload(self, digest: str) -> None:
        await self._step()
        assert not self.in_use[digest], f"{digest} was evicted under a request"
        self.loaded.discard(digest)


SIZES = {digest: 1 + n % 3 for n, digest in enumerate(DIGESTS)}


class ResidencyMachine(RuleBasedStateMachine):
    """Requests come, run, give up and end in any order, on any budget, with an engine that answers when it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.time = 0.0
        self.catalog = Catalog()
        self.catalog.sizes = dict(SIZES)
        self.requests: list[tuple[list[Lease], asyncio.Task[None]]] = []

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def settle(self) -> None:
        self.do(settle())
        for leases, task in self.requests:
            running = task.done() and not task.cancelled() and task.exception() is None
            for lease in leases:
                if running and lease not in self.counted and lease.using:
                    self.counted.append(lease)
                    self.engine.in_use[lease.digest] += 1

    @initialize(budget=st.integers(3, 8))
    def begin(self, budget: int) -> None:
        self.budget = budget
        self.counted: list[Lease] = []
        self.residency = Residency(self.catalog, turn_s=1.0, clock=lambda: self.time)

        async def attach() -> None:
            self.engine = SteppedEngine()
            self.residency.attach(self.engine, budget)
            for digest in DIGESTS:
                self.residency.bind(AdapterKey("default", digest), digest)

        self.do(attach())

    @rule(digests=st.lists(st.sampled_from(DIGESTS), min_size=1, max_size=2, unique=True), prefetch=st.booleans())
    def request(self, digests: list[str], prefetch: bool) -> None:
        async def go() -> None:
            leases = [self.residency.lease(digest) for digest in digests]
            if prefetch:
                for digest in digests:
                    self.residency.prefetch(digest)
            self.requests.append((leases, asyncio.ensure_future(self.residency.enter(*leases))))

        self.do(go())
        self.settle()

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), times=st.integers(1, 2))
    def end(self, data: st.DataObject, times: int) -> None:
        leases, task = self.requests.pop(data.draw(st.integers(0, len(self.requests) - 1)))

        async def go() -> None:
            task.cancel()
            await asyncio.wait([task])
            for lease in leases:
                if lease in self.counted:
                    self.counted.remove(lease)
                    self.engine.in_use[lease.digest] -= 1
                for _ in range(times):
                    lease.release()

        self.do(go())
        self.settle()

    @precondition(lambda self: self.engine.pending)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        async def go() -> None:
            future = self.engine.pending.pop(data.draw(st.integers(0, len(self.engine.pending) - 1)))
            if not future.done():
                future.set_result(None)

        self.do(go())
        self.settle()

    @rule(seconds=st.sampled_from([0.1, 2.0]))
    def wait(self, seconds: float) -> None:
        self.time += seconds

        async def go() -> None:
            self.residency.room.advance()

        self.do(go())
        self.settle()

    @rule(digest=st.sampled_from(DIGESTS), pinned=st.booleans())
    def pin(self, digest: str, pinned: bool) -> None:
        (self.catalog.pins.add if pinned and SIZES[digest] == 1 else self.catalog.pins.discard)(digest)

        async def go() -> None:
            self.residency.policy_changed(digest)

        self.do(go())
        self.settle()

    @rule()
    def restart(self) -> None:
        async def go() -> None:
            old = self.engine
            self.engine = SteppedEngine()
            self.residency.attach(self.engine, self.budget)
            for future in old.pending:
                future.cancel()

        self.do(go())
        # Requests of the old engine end with it.
        for leases, task in self.requests:
            for lease in leases:
                if lease in self.counted:
                    self.counted.remove(lease)
            self.do(asyncio.wait([task]))
            for lease in leases:
                self.do(_call(lease.release))
        self.requests.clear()
        self.settle()

    @invariant()
    def the_budget_holds(self) -> None:
        if hasattr(self, "budget"):
            assert self.residency.room.occupied <= self.budget
            assert sum(SIZES[digest] for digest in self.engine.loaded) <= self.budget

    @invariant()
    def who_runs_has_its_adapters(self) -> None:
        for leases, task in self.requests:
            if task.done() and not task.cancelled() and task.exception() is None:
                assert {lease.digest for lease in leases} <= self.engine.loaded

    @invariant()
    def counts_are_those_of_the_requests(self) -> None:
        if hasattr(self, "budget"):
            for digest in DIGESTS:
                slot = self.residency.slot(digest)
                held = sum(lease.digest == digest for leases, _ in self.requests for lease in leases)
                assert slot is not None and slot.leases == held and 0 <= slot.users <= held

    def teardown(self) -> None:
        """Whatever happened: if requests end and the engine answers, everybody is served or refused."""
        if not hasattr(self, "budget"):
            self.loop.close()
            return
        for _ in range(1000):
            running = [n for n, (_, task) in enumerate(self.requests) if task.done()]
            if not self.requests:
                break
            self.time += 2.0
            self.do(_call(self.residency.room.advance))
            for future in self.engine.pending:
                if not future.done():
                    self.do(_call(lambda f=future: f.set_result(None)))
            self.engine.pending.clear()
            self.settle()
            for n in reversed(running):
                leases, _ = self.requests.pop(n)
                for lease in leases:
                    if lease in self.counted:
                        self.counted.remove(lease)
                        self.engine.in_use[lease.digest] -= 1
                    self.do(_call(lease.release))
        assert not self.requests, "somebody waits for ever"
        self.do(self.residency.close())
        self.loop.close()


async def _call(function: Any) -> None:
    function()


TestResidencyMachine = ResidencyMachine.TestCase
TestResidencyMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
