"""Leases, shared loads, unloads, and an engine that dies at every awkward moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from optiq_daemon.errors import RefusedError, UnavailableError
from optiq_daemon.names import AdapterKey
from optiq_daemon.residency import Residency
from optiq_daemon.slots import SlotState

A = AdapterKey("default", "a")
B = AdapterKey("default", "b")


class Engine:
    """An engine in memory: what is loaded, which calls were made, and gates that hold them back."""

    def __init__(self) -> None:
        self.loaded: set[str] = set()
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.in_use: set[str] = set()
        self.refusal: Exception | None = None
        self.size: Callable[[str], int] = lambda digest: 7

    async def load(self, digest: str, path: Path) -> int:
        self.loads.append(digest)
        await self.gate.wait()
        if self.refusal is not None:
            raise self.refusal
        self.loaded.add(digest)
        return self.size(digest)

    async def unload(self, digest: str) -> None:
        self.unloads.append(digest)
        await self.gate.wait()
        if digest in self.in_use:
            raise RefusedError("rows use it")
        self.loaded.discard(digest)


class Catalog:
    """Every version takes one byte unless said otherwise."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.pins: set[str] = set()
        self.keep: dict[str, float] = {}
        self.freed_digests: list[str] = []

    def path(self, digest: str) -> Path:
        return Path(digest)

    def size(self, digest: str) -> int:
        return self.sizes.get(digest, 1)

    def pinned(self, digest: str) -> bool:
        return digest in self.pins

    def keep_alive_s(self, digest: str) -> float:
        return self.keep.get(digest, 0.0)

    def changed(self, digest: str) -> None:
        pass

    def loaded(self, digest: str) -> None:
        pass

    def freed(self, digest: str) -> None:
        self.freed_digests.append(digest)


class Bench:
    def __init__(self, budget: int = 0, turn_s: float = 0.0) -> None:
        self.catalog = Catalog()
        self.freed = self.catalog.freed_digests
        self.engine = Engine()
        self.residency = Residency(self.catalog, turn_s=turn_s)
        self.residency.attach(self.engine, budget)

    async def ensure(self, digest: str) -> None:
        with self.residency.lease(digest) as lease:
            await self.residency.enter(lease)

    def state(self, digest: str) -> SlotState | None:
        slot = self.residency.slot(digest)
        return slot.state if slot else None


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_waiters_share_one_load_and_a_cancelled_one_takes_nobody_along(bench: Bench) -> None:
    bench.engine.gate.clear()
    bench.residency.bind(A, "d1")
    leases = [bench.residency.lease("d1") for _ in range(3)]
    waiters = [asyncio.create_task(bench.ensure("d1")) for _ in leases]
    await settle()
    waiters[0].cancel()
    bench.engine.gate.set()
    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError) and results[1:] == [None, None]
    assert bench.engine.loads == ["d1"]
    assert bench.residency.slot("d1").resident_bytes == 7  # type: ignore[union-attr]


async def test_a_version_leaves_after_its_last_lease_and_release_counts_once(bench: Bench) -> None:
    bench.residency.bind(A, "d1")
    first, second = bench.residency.lease("d1"), bench.residency.lease("d1")
    await bench.ensure("d1")
    bench.residency.bind(A, "d2")
    for _ in range(3):
        first.release()
    await settle()
    assert bench.state("d1") is SlotState.RESIDENT and not bench.engine.unloads
    second.release()
    await settle()
    assert bench.engine.unloads == ["d1"] and bench.freed == ["d1"] and bench.state("d1") is None


async def test_two_names_share_a_version(bench: Bench) -> None:
    bench.residency.bind(A, "d1")
    bench.residency.bind(B, "d1")
    with bench.residency.lease("d1"):
        await bench.ensure("d1")
    bench.residency.bind(A, "")
    await settle()
    assert bench.state("d1") is SlotState.RESIDENT and not bench.freed
    bench.residency.bind(B, "")
    await settle()
    assert bench.freed == ["d1"]


async def test_a_load_that_nobody_waits_for_any_more_is_undone(bench: Bench) -> None:
    bench.engine.gate.clear()
    lease = bench.residency.lease("d1")
    waiter = asyncio.create_task(bench.ensure("d1"))
    await settle()
    waiter.cancel()
    lease.release()
    bench.engine.gate.set()
    await settle()
    assert bench.engine.loaded == set() and bench.freed == ["d1"]


async def test_a_refused_load_reaches_every_waiter_and_can_be_tried_again(bench: Bench) -> None:
    bench.residency.bind(A, "d1")
    bench.engine.refusal = RefusedError("not finite")
    with bench.residency.lease("d1"):
        waits = (bench.ensure("d1") for _ in range(2))
        results = await asyncio.gather(*waits, return_exceptions=True)
        assert all(isinstance(result, RefusedError) for result in results)
        bench.engine.refusal = None
        await bench.ensure("d1")
    assert bench.state("d1") is SlotState.RESIDENT


async def test_unload_waits_for_leases_and_a_new_lease_takes_it_back(bench: Bench) -> None:
    bench.residency.bind(A, "d1")
    lease = bench.residency.lease("d1")
    await bench.ensure("d1")
    await bench.residency.unload("d1")
    assert bench.state("d1") is SlotState.RESIDENT
    again = bench.residency.lease("d1")
    lease.release()
    again.release()
    await settle()
    assert bench.state("d1") is SlotState.RESIDENT, "it was asked for again"
    await bench.residency.unload("d1")
    assert bench.state("d1") is SlotState.ABSENT and not bench.freed, "its name keeps its bytes"


async def test_a_request_during_an_unload_loads_it_again(bench: Bench) -> None:
    bench.residency.bind(A, "d1")
    with bench.residency.lease("d1"):
        await bench.ensure("d1")
    bench.engine.gate.clear()
    unloading = asyncio.create_task(bench.residency.unload("d1"))
    await settle()
    assert bench.state("d1") is SlotState.UNLOADING
    lease = bench.residency.lease("d1")
    waiter = asyncio.create_task(bench.ensure("d1"))
    await settle()
    bench.engine.gate.set()
    await asyncio.gather(waiter, unloading)
    assert bench.engine.loads == ["d1", "d1"] and bench.engine.loaded == {"d1"}
    lease.release()


async def test_a_row_that_is_still_leaving_delays_the_unload(bench: Bench) -> None:
    bench.residency.bind(A, "d1")
    with bench.residency.lease("d1"):
        await bench.ensure("d1")
    bench.engine.in_use.add("d1")
    bench.residency.bind(A, "")
    await asyncio.sleep(0.05)
    assert bench.state("d1") is SlotState.UNLOADING and not bench.freed
    bench.engine.in_use.clear()
    await asyncio.sleep(0.1)
    assert bench.freed == ["d1"] and bench.engine.loaded == set()


async def test_an_engine_that_dies_fails_its_loads_and_the_next_one_serves(bench: Bench) -> None:
    bench.residency.bind(A, "d1")
    bench.engine.gate.clear()
    lease = bench.residency.lease("d1")
    waiter = asyncio.create_task(bench.ensure("d1"))
    await settle()
    bench.residency.detach()
    assert bench.state("d1") is SlotState.ABSENT
    with pytest.raises(UnavailableError):
        await bench.ensure("d1")
    following = Engine()
    bench.residency.attach(following)
    await bench.ensure("d1")
    # The old engine's answer comes late and must not be taken for the new one's.
    following.loaded.clear()
    bench.engine.gate.set()
    with pytest.raises(UnavailableError):
        await waiter
    assert bench.state("d1") is SlotState.RESIDENT
    lease.release()
    assert following.loads == ["d1"]


async def test_an_engine_that_dies_while_retired_versions_leave_frees_them(bench: Bench) -> None:
    bench.residency.bind(A, "d1")
    lease = bench.residency.lease("d1")
    await bench.ensure("d1")
    bench.residency.bind(A, "")
    bench.residency.detach()
    assert bench.freed == []
    lease.release()
    assert bench.freed == ["d1"]
