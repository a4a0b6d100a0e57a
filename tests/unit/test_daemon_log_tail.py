"""The end of a log, and what is added to it, while it is written, cut and replaced."""

from __future__ import annotations

import asyncio
from pathlib import Path

from optiq_daemon.jobs import log_tail
from optiq_daemon.jobs.log_tail import LogTail, tail


def test_last_lines_then_what_is_added(tmp_path: Path) -> None:
    path = tmp_path / "trainer.log"
    log = LogTail(path)
    assert log.last(5) == [] and log.added() == []
    path.write_text("one\ntwo\nthr")
    assert LogTail(path).last(1) == ["two"]
    assert LogTail(path).last(0) == []
    assert log.added() == ["one", "two"]
    with path.open("a") as file:
        file.write("ee\nfour\n")
    assert log.added() == ["three", "four"] and log.added() == []


def test_a_log_that_was_replaced_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "trainer.log"
    path.write_text("old\n" * 3)
    log = LogTail(path)
    log.last(1)
    path.rename(tmp_path / "trainer.log.1")
    assert log.added() == []
    path.write_text("new\n")
    assert log.added() == ["new"]


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    path = tmp_path / "trainer.log"
    path.write_text("".join(f"line {number}\n" for number in range(200_000)))
    assert path.stat().st_size > log_tail.MAX_READ_BYTES
    log = LogTail(path)
    lines = log.last(10**9)
    assert lines[-1] == "line 199999" and len(lines) < 200_000 and all(line.startswith("line ") for line in lines)
    assert log.added() == []


async def test_following_ends_with_the_job_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "trainer.log"
    path.write_text("a\n")
    over = False
    found: list[str] = []
    begun = asyncio.Event()

    async def read() -> None:
        async for lines in tail(path, 10, lambda: over, follow=True):
            found.extend(lines)
            begun.set()

    reading = asyncio.create_task(read())
    await asyncio.wait_for(begun.wait(), 10)
    with path.open("a") as file:
        file.write("b\n")
    over = True
    await asyncio.wait_for(reading, 10)
    assert found == ["a", "b"]
