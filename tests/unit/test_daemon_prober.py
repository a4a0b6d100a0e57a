"""What becomes of a probe's answer, of an engine that dies, and of adapters that have left meanwhile."""

from __future__ import annotations

import asyncio
import math

import pytest

from optiq_daemon import prober
from optiq_daemon.errors import UnavailableError
from optiq_daemon.prober import NO_EFFECT, NOT_FINITE, Prober


class Engine:
    def __init__(self, differences: dict[str, float], *, dies: bool = False) -> None:
        self.differences = differences
        self.dies = dies
        self.asked: list[list[str]] = []

    async def probe(self, digests: list[str]) -> dict[str, float]:
        self.asked.append(digests)
        if self.dies:
            raise UnavailableError("the engine process ended")
        return {digest: self.differences[digest] for digest in digests if digest in self.differences}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prober, "GATHER_S", 0.0)


async def answered(engine: Engine, digests: list[str]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    made = Prober(lambda digest, warning: found.append((digest, warning)))
    for digest in digests:
        made.add(digest)
    made.attach(engine)
    assert made._task is not None
    await asyncio.wait_for(made._task, 5)
    await made.close()
    return found


async def test_warnings_follow_from_the_difference() -> None:
    engine = Engine({"good": 0.5, "idle": 0.0, "wild": math.nan})
    assert await answered(engine, ["good", "idle", "wild", "left"]) == [
        ("good", ""),
        ("idle", NO_EFFECT),
        ("wild", NOT_FINITE),
    ]


async def test_many_are_asked_about_a_few_at_a_time() -> None:
    digests = [f"d{n}" for n in range(20)]
    engine = Engine(dict.fromkeys(digests, 1.0))
    assert len(await answered(engine, digests)) == 20
    assert [len(asked) for asked in engine.asked] == [8, 8, 4]


async def test_an_engine_that_dies_leaves_them_to_the_next_load() -> None:
    found: list[str] = []
    made = Prober(lambda digest, warning: found.append(digest))
    made.add("a")
    made.attach(Engine({}, dies=True))
    assert made._task is not None
    await asyncio.wait_for(made._task, 5)
    made.attach(Engine({"a": 1.0}))
    made.add("a")
    await asyncio.wait_for(made._task, 5)
    assert found == ["a"]
    await made.close()
