"""The drop folder with the real watchdog: what settles, when, and what is left alone."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from optiq_daemon import watcher as watcher_module
from optiq_daemon.names import AdapterKey
from optiq_daemon.watcher import DropWatcher

SETTLE_S = 0.15


class Seen:
    """A watcher that writes down what it reports."""

    def __init__(self, root: Path, reconcile_s: float = 60.0) -> None:
        self.settled: list[tuple[AdapterKey, float]] = []
        self.changed: list[AdapterKey] = []
        self.tenants: set[str] = set()
        self.ignored: list[str] = []
        self.known: list[AdapterKey] = []
        self.root = root
        self.watcher = DropWatcher(
            root,
            settle_s=SETTLE_S,
            reconcile_s=reconcile_s,
            known=lambda: self.known,
            on_tenant=self.tenants.add,
            on_change=self.changed.append,
            on_settled=lambda key: self.settled.append((key, time.monotonic())),
            on_ignored=lambda path, why: self.ignored.append(path.name),
        )

    def count(self, adapter: str, tenant: str = "default") -> int:
        return sum(key == (tenant, adapter) for key, _ in self.settled)

    async def until(self, done: Callable[[], bool], seconds: float = 5.0) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, (self.settled, self.ignored)
            await asyncio.sleep(0.01)


@pytest.fixture
async def seen(tmp_path: Path) -> AsyncIterator[Seen]:
    made = Seen(tmp_path / "adapters")
    await made.watcher.start()
    yield made
    await made.watcher.stop()


async def test_a_folder_settles_once_after_its_last_change(seen: Seen) -> None:
    folder = seen.root / "default" / "one"
    folder.mkdir()
    for part in range(5):
        (folder / f"file-{part}").write_bytes(b"x" * part)
        await asyncio.sleep(SETTLE_S / 3)
    last = time.monotonic()
    await seen.until(lambda: seen.count("one") == 1)
    # The last change came a third of the settle time before `last`.
    assert SETTLE_S * 0.6 <= seen.settled[0][1] - last <= SETTLE_S + 0.5
    await asyncio.sleep(2 * SETTLE_S)
    assert seen.count("one") == 1 and seen.changed == [AdapterKey("default", "one")]


async def test_reading_a_folder_is_no_change(seen: Seen) -> None:
    folder = seen.root / "default" / "read"
    folder.mkdir()
    (folder / "file").write_bytes(b"x")
    await seen.until(lambda: seen.count("read") == 1)
    for _ in range(3):
        (folder / "file").read_bytes()
        list(folder.iterdir())
        await asyncio.sleep(SETTLE_S)
    await asyncio.sleep(2 * SETTLE_S)
    assert seen.count("read") == 1


async def test_an_open_file_holds_its_folder_back(seen: Seen) -> None:
    folder = seen.root / "default" / "open"
    folder.mkdir()
    await asyncio.sleep(0.05)
    with (folder / "file").open("wb") as writing:
        writing.write(b"half")
        writing.flush()
        await asyncio.sleep(4 * SETTLE_S)
        assert seen.count("open") == 0
    await seen.until(lambda: seen.count("open") == 1)


async def test_replacing_moving_and_deleting_settle_again(seen: Seen, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    ready.mkdir()
    (ready / "file").write_bytes(b"x")
    ready.rename(seen.root / "default" / "moved")
    await seen.until(lambda: seen.count("moved") == 1)
    (seen.root / "default" / "moved" / "file").write_bytes(b"y")
    await seen.until(lambda: seen.count("moved") == 2)
    (seen.root / "default" / "moved").rename(seen.root / "default" / "renamed")
    await seen.until(lambda: seen.count("moved") == 3 and seen.count("renamed") == 1)
    shutil.rmtree(seen.root / "default" / "renamed")
    await seen.until(lambda: seen.count("renamed") == 2)


async def test_tenants_appear_and_bad_names_are_ignored_once(seen: Seen) -> None:
    (seen.root / "acme" / "nested").mkdir(parents=True)
    (seen.root / "acme" / "nested" / "file").write_bytes(b"x")
    for name in (".hidden", "Bad Name", "file.txt"):
        (seen.root / "default" / name).mkdir()
        (seen.root / "default" / name / "file").write_bytes(b"x")
    (seen.root / "default" / "plain-file").write_bytes(b"x")
    await seen.until(lambda: seen.count("nested", "acme") >= 1 and {"default", "acme"} <= seen.tenants)
    await asyncio.sleep(2 * SETTLE_S)
    assert sorted(seen.ignored) == ["Bad Name", "file.txt"]
    assert {key.adapter for key, _ in seen.settled} <= {"nested", "plain-file"}


async def test_a_tenant_whose_folder_goes_during_a_look_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "adapters"
    (root / "brief" / "one").mkdir(parents=True)
    look = watcher_module._look

    def look_and_lose(folder: Path) -> object:
        found = look(folder)
        shutil.rmtree(root / "brief")
        return found

    monkeypatch.setattr(watcher_module, "_look", look_and_lose)
    made = Seen(root)
    await made.watcher.start()
    assert made.tenants == {"default"}
    await made.watcher.stop()


async def test_what_is_there_at_start_settles_and_what_is_gone_too(tmp_path: Path) -> None:
    root = tmp_path / "adapters"
    (root / "default" / "there").mkdir(parents=True)
    made = Seen(root)
    made.known.append(AdapterKey("default", "gone"))
    await made.watcher.start()
    await made.until(lambda: made.count("there") == 1 and made.count("gone") == 1)
    await made.watcher.stop()


async def test_the_periodic_look_finds_what_raised_no_event(tmp_path: Path) -> None:
    made = Seen(tmp_path / "adapters", reconcile_s=0.2)
    await made.watcher.start()
    made.watcher._observer.stop()  # as if the platform's events were lost
    folder = made.root / "default" / "silent"
    folder.mkdir()
    (folder / "file").write_bytes(b"x")
    await made.until(lambda: made.count("silent") >= 1)
    await made.watcher.stop()


async def test_a_drop_folder_that_is_replaced_is_watched_again(tmp_path: Path) -> None:
    made = Seen(tmp_path / "adapters", reconcile_s=0.2)
    await made.watcher.start()
    shutil.rmtree(made.root)
    await asyncio.sleep(0.5)
    assert (made.root / "default").is_dir()
    (made.root / "default" / "again").mkdir()
    await made.until(lambda: made.count("again") >= 1)
    await made.watcher.stop()


async def test_folders_that_were_renamed_do_not_keep_it_from_stopping(tmp_path: Path) -> None:
    made = Seen(tmp_path / "adapters")
    await made.watcher.start()
    for name in ("one", "two"):
        folder = made.root / "default" / name
        folder.mkdir()
        (folder / "file").write_bytes(b"x")
    await made.until(lambda: made.count("one") >= 1 and made.count("two") >= 1)
    (made.root / "default" / "one").rename(tmp_path / "aside")
    (made.root / "default" / "two").rename(made.root / "default" / "one")
    shutil.rmtree(made.root / "default" / "one")
    (tmp_path / "aside").rename(made.root / "default" / "two")
    await made.until(lambda: made.count("two") >= 2)
    await made.watcher.stop()
