"""Folders of a burst rest between each other while requests run, and only then."""

from __future__ import annotations

import asyncio
import time

import pytest

from optiq_daemon.copy_pace import PLACES, REST, CopyPace

COPY_S = 0.02


async def burst(pace: CopyPace, count: int) -> list[float]:
    """When each of so many copies began, in seconds since the first did."""
    began: list[float] = []

    async def copy() -> None:
        async with pace.turn():
            began.append(time.monotonic())
            await asyncio.sleep(COPY_S)

    await asyncio.gather(*(copy() for _ in range(count)))
    return [at - began[0] for at in began]


async def test_beside_requests_the_first_begin_at_once_and_the_others_rest() -> None:
    began = await burst(CopyPace(lambda: True), PLACES + 1)
    assert began[PLACES] >= REST * COPY_S
    assert began[PLACES - 1] < began[PLACES]


async def test_without_requests_nobody_rests() -> None:
    busy = True
    pace = CopyPace(lambda: busy)
    busy = False
    began = time.monotonic()
    await burst(pace, 3 * PLACES)
    resting = time.monotonic()
    busy = True
    await burst(pace, 2 * PLACES)
    assert resting - began < time.monotonic() - resting, "more copies took less time"


async def test_a_copy_that_fails_gives_its_place_back() -> None:
    pace = CopyPace(lambda: False)
    for _ in range(2 * PLACES):
        with pytest.raises(ValueError, match="bad"):
            async with pace.turn():
                raise ValueError("bad")
