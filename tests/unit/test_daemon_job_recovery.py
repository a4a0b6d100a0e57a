"""Jobs whose trainer died, restarts, and the parts of publishing that need no process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from optiq_core.train.config import TrainConfig
from optiq_daemon.errors import InvalidRequestError
from optiq_daemon.events import EventLog
from optiq_daemon.jobs.book import JobBook
from optiq_daemon.jobs.publish import check_publication, with_share
from optiq_daemon.jobs.records import JobRecord, Publication
from optiq_daemon.jobs.recovery import BELOW_DEATH, died, killed, out_of_memory, recover
from optiq_daemon.routes import Target
from optiq_daemon.states import JobState
from optiq_daemon.store import Store

CONFIG = TrainConfig(data_path="/d", batch_size=4)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "optiq.sqlite")


def book_of(store: Store) -> JobBook:
    return JobBook(store, EventLog(store), lambda _: 1.0)


def add(book: JobBook, name: str, state: JobState = JobState.RUNNING, **fields: Any) -> JobRecord:
    record = JobRecord(id=name, tenant="default", adapter_id="a", request_id=name, config=CONFIG, **fields)
    book.add(record)
    book.set(record, state)
    return record


def test_a_new_daemon_takes_up_every_job_as_it_was_meant(store: Store) -> None:
    first = book_of(store)
    add(first, "ran", plan=None, planned=True)
    add(first, "waited", JobState.WAITING, planned=True)
    add(first, "paused", JobState.PAUSED, pause_requested=True)
    add(first, "pausing", pause_requested=True)
    add(first, "cancelling", cancel_requested=True)
    add(first, "done", JobState.SUCCEEDED)
    book = book_of(store)
    recover(book, attempts=3)
    found = {record.id: record.state for record in book.of("default")}
    assert found == {
        "ran": JobState.QUEUED,
        "waited": JobState.QUEUED,
        "paused": JobState.PAUSED,
        "pausing": JobState.PAUSED,
    }
    assert not any(record.planned for record in book.of("default")), "what was free then says nothing about now"
    assert [r.id for r in book.page("default", 10, None) if r.state is JobState.CANCELLED] == ["cancelling"]


def test_a_job_of_an_earlier_version_is_still_read(store: Store) -> None:
    document = {
        **{"id": "old", "tenant": "default", "adapter_id": "a", "request_id": "r", "config": {"data_path": "/d"}},
        **{"state": 4, "state_reason": "", "create_time": 1.0, "attempts": 1, "cancel_requested": False},
    }
    store.execute(
        "INSERT INTO jobs (id, tenant, request_id, state, create_time, document) VALUES (?, ?, ?, ?, ?, ?)",
        ("old", "default", "r", 4, 1.0, msgspec.json.encode(document).decode()),
    )
    book = book_of(store)
    recover(book, attempts=3)
    assert [r.state for r in book.of("default")] == [JobState.QUEUED]


def test_deaths_without_progress_are_counted(store: Store) -> None:
    book = book_of(store)
    record = add(book, "unlucky")
    for expected in (JobState.QUEUED, JobState.QUEUED, JobState.FAILED):
        died(book, record, "exit code 7", 3)
        assert record.state is expected
    assert "3 times in a row" in record.state_reason


def test_running_out_of_memory_makes_a_job_smaller_until_nothing_is_left(store: Store) -> None:
    book = book_of(store)
    record = add(book, "large", planned=True)
    seen = []
    while record.state is not JobState.FAILED:
        out_of_memory(book, record, "unable to allocate", 1000, attempts=1)
        seen.append(record.reduced.words(CONFIG))
    assert seen[:3] == ["micro_batch_size 2", "micro_batch_size 1", "micro_batch_size 1, loss_chunk 256"]
    assert record.reduced.limit_bytes == int(1000 * BELOW_DEATH)
    assert not record.planned, "it is planned anew"
    assert record.stalled == 1, "only the last one counts"


def test_a_kill_is_taken_for_want_of_memory_and_counts(store: Store) -> None:
    book = book_of(store)
    record = add(book, "shot")
    killed(book, record, "signal SIGKILL", attempts=2)
    assert (record.state, record.stalled) == (JobState.QUEUED, 1)
    assert "with micro_batch_size 2: signal SIGKILL" in record.state_reason
    killed(book, record, "signal SIGKILL", attempts=2)
    assert record.state is JobState.FAILED


def test_a_new_target_gets_its_share_and_the_others_keep_their_proportions() -> None:
    targets = (Target("a@v1", 3), Target("base", 1), Target("old@v1", 0))
    shared = with_share(targets, "a@v2", 20)
    assert shared == (Target("a@v1", 60), Target("base", 20), Target("old@v1", 0), Target("a@v2", 20))
    assert with_share(shared, "a@v2", 50)[-1] == Target("a@v2", 50), "a target is there once"
    assert with_share((Target("base", 0),), "a@v1", 5)[-1] == Target("a@v1", 100), "somebody has to serve"
    assert min(t.weight for t in with_share((Target("x", 1_000_000), Target("y", 1)), "z", 5)) == 1


def test_what_could_not_be_published_later_is_refused_at_once(tmp_path: Path) -> None:
    config = TrainConfig(data_path=str(tmp_path))
    check_publication(Publication(), config)
    with pytest.raises(InvalidRequestError, match=r"valid\.jsonl"):
        check_publication(Publication(gate=True), config)
    with pytest.raises(InvalidRequestError, match="absolute path"):
        check_publication(Publication(gate=True, gate_path="eval.jsonl"), config)
    with pytest.raises(InvalidRequestError, match="route_weight"):
        check_publication(Publication(route="canary", route_weight=101), config)
    (tmp_path / "valid.jsonl").write_text("")
    check_publication(Publication(gate=True, route="canary"), config)
