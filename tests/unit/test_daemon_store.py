"""Store, migrations, events and names."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from optiq_core.train.config import TrainConfig
from optiq_core.train.events import Progress
from optiq_daemon.errors import InvalidRequestError, OutOfRangeError
from optiq_daemon.events import Event, EventLog
from optiq_daemon.jobs.records import JobRecord
from optiq_daemon.jobs.table import JobTable
from optiq_daemon.names import is_id, new_job_id, parse_adapter, parse_adapter_ref, parse_job, parse_parent
from optiq_daemon.store import Store, StoreError, migration_files


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "optiq.sqlite3")


def test_a_fresh_store_has_every_migration_and_the_default_tenant(store: Store) -> None:
    assert store.row("PRAGMA user_version")[0] == len(list(migration_files())) >= 1  # type: ignore[index]
    assert store.row("PRAGMA journal_mode")[0] == "wal"  # type: ignore[index]
    assert store.tenants() == ["default"]
    assert store.add_tenant("acme") and not store.add_tenant("acme")
    assert store.has_tenant("acme") and not store.has_tenant("nobody")


def test_opening_again_changes_nothing(store: Store) -> None:
    store.add_tenant("acme")
    store.close()
    again = Store(store.path)
    assert again.tenants() == ["acme", "default"]


def test_a_store_of_a_newer_version_is_refused(store: Store) -> None:
    store.execute("PRAGMA user_version = 999")
    store.close()
    with pytest.raises(StoreError, match=r"newer version .schema 999"):
        Store(store.path)


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "optiq.sqlite3"
    path.write_bytes(b"not a database at all, and long enough to be read as one" * 20)
    with pytest.raises(StoreError, match="not a database"):
        Store(path)


def test_a_migration_that_fails_leaves_the_version_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = list(migration_files())
    broken = [*good, ("9999_broken.sql", "CREATE TABLE extra (x); INSERT INTO nothing VALUES (1);")]
    monkeypatch.setattr("optiq_daemon.store.migration_files", lambda: iter(broken))
    path = tmp_path / "optiq.sqlite3"
    with pytest.raises(StoreError, match="9999_broken"):
        Store(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == len(good)
        assert not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'extra'").fetchall()


def test_a_transaction_is_all_or_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError), store.transaction():
        store.add_tenant("half")
        with store.transaction():
            store.add_tenant("inner")
        raise RuntimeError
    assert store.tenants() == ["default"]


def progress(step: int) -> Progress:
    return Progress(
        step=step,
        total_steps=9,
        train_loss=1.0,
        tokens_per_second=1.0,
        trained_tokens=1,
        seconds_left=1.0,
        peak_memory_bytes=1,
        learning_rate=1.0,
    )


def test_jobs_keep_their_progress_and_page_newest_first(store: Store) -> None:
    table = JobTable(store)
    config = TrainConfig(data_path="/data", target_modules=("q_proj",), mask_prompt=True)
    records = [
        JobRecord(id=f"job-{n}", tenant="default", adapter_id="a", request_id=str(n), config=config, create_time=n // 2)
        for n in range(5)
    ]
    for record in records:
        table.insert(record)
    assert table.find(records[0].key) == records[0]
    assert table.by_request("default", "3") == records[3] and table.by_request("other", "3") is None
    with pytest.raises(sqlite3.IntegrityError):
        table.insert(JobRecord(id="x", tenant="default", adapter_id="a", request_id="3", config=config))
    seen: list[str] = []
    before = None
    while page := table.page("default", 2, before):
        seen += [record.id for record in page]
        before = page[-1].create_time, page[-1].id
    assert seen == ["job-4", "job-3", "job-2", "job-1", "job-0"]
    for step in (1, 2, 3):
        table.add_progress("job-1", progress(step))
    table.rewind("job-1", 2)
    table.add_progress("job-1", progress(3))
    reports = table.progress_after("job-1", 0)
    assert [report.step for _, report in reports] == [1, 2, 3]
    assert table.progress_after("job-1", reports[-1][0]) == []
    table.delete("job-1")
    assert table.progress_after("job-1", 0) == []


async def take(log: EventLog, from_revision: int, count: int) -> list[Event]:
    events: list[Event] = []
    async for event in log.watch(from_revision):
        events.append(event)
        if len(events) == count:
            break
    return events


async def test_events_replay_and_follow(store: Store) -> None:
    log = EventLog(store)
    for n in range(3):
        log.append(f"test.{n}", "resource", "message", {"n": str(n)})
    assert [event.type for event in await take(log, 2, 2)] == ["test.1", "test.2"]
    live = asyncio.create_task(take(log, 0, 2))
    replay = asyncio.create_task(take(log, 1, 5))
    await asyncio.sleep(0)
    log.append("test.3")
    log.append("test.4")
    assert [event.type for event in await live] == ["test.3", "test.4"]
    assert [event.revision for event in await replay] == [1, 2, 3, 4, 5]


async def test_revisions_go_on_over_restarts_and_compaction(store: Store) -> None:
    log = EventLog(store, keep=10)
    for n in range(35):
        log.append(f"test.{n}")
    assert (log.first_revision, log.last_revision) == (26, 35)
    assert store.row("SELECT count(*) FROM events")[0] <= 11  # type: ignore[index]
    with pytest.raises(OutOfRangeError) as caught:
        await take(log, 25, 1)
    assert caught.value.metadata == {"first_revision": "26", "last_revision": "35"}
    again = EventLog(store, keep=10)
    assert again.append("after").revision == 36
    assert [event.revision for event in await take(again, 27, 10)] == list(range(27, 37))
    with pytest.raises(OutOfRangeError):
        await take(again, 38, 1)
    with pytest.raises(InvalidRequestError):
        await take(again, -1, 1)
    store.execute("DELETE FROM events")
    assert EventLog(store).append("emptied").revision == 37


async def test_a_watcher_that_falls_behind_is_told_and_blocks_nobody(store: Store) -> None:
    log = EventLog(store, keep=10)
    watching = log.watch(1)
    log.append("first")
    assert (await anext(watching)).type == "first"
    for n in range(600):
        log.append(f"flood.{n}")
    with pytest.raises(OutOfRangeError):
        await anext(watching)


def test_ids_and_names() -> None:
    good = ["a", "a1", "a-b", "x" * 63]
    bad = ["", "A", "1a", "-a", "a-", "a_b", "a/b", "..", "a\n", "x" * 64, "ä", "a b", ".a"]
    assert all(is_id(text) for text in good) and not any(is_id(text) for text in bad)
    assert parse_parent("") == "default" and parse_parent("tenants/acme") == "acme"
    assert parse_adapter("tenants/t/adapters/a").name == "tenants/t/adapters/a"
    assert parse_job("tenants/t/jobs/j").job == "j"
    assert parse_adapter_ref("a") == ("a", "")
    assert parse_adapter_ref("a@" + "0" * 64) == ("a", "0" * 64)
    assert parse_adapter_ref("a@abcdef") == ("a", "abcdef") and parse_adapter_ref("a@v12") == ("a", "v12")
    for text in ("a@", "a@abc", "a@v0", "a@-1", "a@v", "a@" + "0" * 65, "a@" + "G" * 64, "@" + "0" * 64):
        with pytest.raises(InvalidRequestError):
            parse_adapter_ref(text)
    for text in ("tenants/t/adapters/", "tenants/t/jobs/a", "/tenants/t/adapters/a", "tenants/t/adapters/a/b"):
        with pytest.raises(InvalidRequestError):
            parse_adapter(text)
    for adapter in ("a", "x" * 63, "a" * 47 + "-b"):
        assert is_id(new_job_id(adapter))
