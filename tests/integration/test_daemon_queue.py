"""The queue of a real daemon over the tiny base: order, pauses, dependencies, places, restarts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from optiq_client import Client, InvalidRequest, Job, JobSchedule, JobState, TrainingConfig, WaitReason
from tests.integration.conftest import Daemon, eventually


def settings(folder: Path, **fields: object) -> TrainingConfig:
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_text('{"text": "number 1 and number 2"}\n' * 16)
    made = TrainingConfig(data_path=str(folder), rank=2, num_layers=-1, batch_size=2, iters=4, max_seq_length=32)
    return replace(made, steps_per_report=1, **fields)


def state(client: Client, job: Job) -> JobState:
    return client.training.get(job.id).state


def step(client: Client, job: Job) -> int:
    progress = client.training.get(job.id).progress
    return progress.step if progress is not None else 0


def test_pause_frees_the_place_and_resume_goes_on(tiny_client: Client, tmp_path: Path) -> None:
    client, long = tiny_client, settings(tmp_path / "data", iters=1_000_000)
    first = client.training.create("first", long)
    assert eventually(lambda: step(client, first) > 0, 180)
    second = client.training.create("second", replace(long, iters=3))
    assert eventually(lambda: state(client, second) is JobState.WAITING, 180)
    waiting = client.training.get(second.id)
    assert waiting.wait is not None and waiting.wait.reason is WaitReason.TURN and waiting.wait.ahead == 1

    client.training.pause(first.id)
    assert eventually(lambda: state(client, first) is JobState.PAUSED, 180)
    reached = step(client, first)
    assert "goes on from step" in client.training.get(first.id).state_reason
    assert eventually(lambda: state(client, second) is JobState.SUCCEEDED, 180)
    assert state(client, first) is JobState.PAUSED

    client.training.resume(first.id)
    assert eventually(lambda: step(client, first) > reached, 180)
    assert client.training.get(first.id).attempts == 2
    client.training.cancel(first.id)
    assert eventually(lambda: state(client, first) is JobState.CANCELLED, 180)


@pytest.mark.slow
def test_a_job_comes_after_another_and_ends_with_it(tiny_client: Client, tmp_path: Path) -> None:
    client, short = tiny_client, settings(tmp_path / "data")
    first = client.training.create("before", short, schedule=JobSchedule(not_before=datetime.now(UTC) + timedelta(1)))
    after = client.training.create("behind", short, schedule=JobSchedule(after=(first.id,)))
    doomed = client.training.create("doomed", short, schedule=JobSchedule(after=(after.id,)))
    assert after.schedule.after == (first.name,)
    assert eventually(lambda: state(client, first) is JobState.WAITING, 180)
    held = client.training.get(first.id)
    assert held.wait is not None and held.wait.reason is WaitReason.TIME and held.wait.until is not None
    assert eventually(lambda: (w := client.training.get(after.id).wait) is not None and w.jobs == (first.name,), 180)
    with pytest.raises(InvalidRequest, match="comes after"):
        client.training.update(first.id, after=[doomed.id])
    with pytest.raises(InvalidRequest, match="there is no job"):
        client.training.create("x", short, schedule=JobSchedule(after=("nobody",)))

    now = client.training.update(first.id, not_before=datetime.now(UTC), priority=7)
    assert now.schedule.priority == 7
    assert eventually(lambda: state(client, first) is JobState.SUCCEEDED, 180)
    client.training.cancel(after.id)
    assert eventually(lambda: state(client, doomed) is JobState.CANCELLED, 180)
    assert after.id in client.training.get(doomed.id).state_reason


@pytest.mark.slow
def test_priority_decides_who_is_next(tiny_client: Client, tmp_path: Path) -> None:
    client, short = tiny_client, settings(tmp_path / "data")
    blocker = client.training.create("blocker", replace(short, iters=1_000_000))
    assert eventually(lambda: step(client, blocker) > 0, 180)
    jobs = [client.training.create(f"p{p}", short, schedule=JobSchedule(priority=p)) for p in (0, 50)]
    assert eventually(lambda: all(state(client, job) is JobState.WAITING for job in jobs), 180)
    client.training.cancel(blocker.id)
    assert eventually(lambda: all(state(client, job) is JobState.SUCCEEDED for job in jobs), 180)
    low, high = (client.training.get(job.id) for job in jobs)
    assert low.start_time is not None and high.start_time is not None and high.start_time < low.start_time


@pytest.mark.slow
def test_two_places_what_is_paused_stays_so_over_a_restart(
    another_daemon: Callable[..., Daemon], tiny_folder: Path, tmp_path: Path
) -> None:
    daemon = another_daemon("--model", str(tiny_folder), "--settle-ms", "100", "--drain-seconds", "10")
    (daemon.home / "config.toml").write_text("training_jobs = 2\n")
    long = settings(tmp_path / "data", iters=1_000_000)
    with daemon.start() as client:
        both = [client.training.create(f"long-{i}", long) for i in range(2)]
        assert eventually(lambda: all(step(client, job) > 0 for job in both), 180)
        assert len(client.runtime.status().running_jobs) == 2
        client.training.pause(both[0].id)
        assert eventually(lambda: state(client, both[0]) is JobState.PAUSED, 180)
        reached = step(client, both[1])
    assert daemon.stop() == 0
    with daemon.start() as client:
        assert state(client, both[0]) is JobState.PAUSED
        assert eventually(lambda: step(client, both[1]) > reached, 180)
        client.training.resume(both[0].id)
        assert eventually(lambda: len(client.runtime.status().running_jobs) == 2, 180)
        for job in both:
            client.training.cancel(job.id)
        assert eventually(lambda: all(state(client, job) is JobState.CANCELLED for job in both), 180)
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_job_waits_for_the_memory_that_another_holds(
    tiny_client: Client, another_daemon: Callable[..., Daemon], tiny_folder: Path, tmp_path: Path
) -> None:
    long = settings(tmp_path / "data", iters=1_000_000)
    needed = tiny_client.training.plan(long).bound_bytes
    daemon = another_daemon("--model", str(tiny_folder), "--settle-ms", "100", "--drain-seconds", "10")
    config = f"training_jobs = 2\ntraining_memory_mb = {1.5 * needed / 1e6}\n"
    (daemon.home / "config.toml").write_text(config)
    with daemon.start() as client:
        first = client.training.create("first", long)
        assert eventually(lambda: step(client, first) > 0, 180)
        second = client.training.create("second", replace(long, iters=3))
        assert eventually(lambda: client.training.get(second.id).wait is not None, 180)
        wait = client.training.get(second.id).wait
        assert wait is not None and wait.reason is WaitReason.MEMORY
        assert wait.free_bytes < needed <= wait.needed_bytes
        client.training.cancel(first.id)
        assert eventually(lambda: state(client, second) is JobState.SUCCEEDED, 180)
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_slice_that_is_over_makes_room_at_a_step(
    another_daemon: Callable[..., Daemon], tiny_folder: Path, tmp_path: Path
) -> None:
    daemon = another_daemon("--model", str(tiny_folder), "--settle-ms", "100", "--drain-seconds", "10")
    (daemon.home / "config.toml").write_text("training_slice_s = 1\n")
    with daemon.start() as client:
        long = settings(tmp_path / "data", iters=1_000_000)
        first = client.training.create("first", long)
        assert eventually(lambda: step(client, first) > 0, 180)
        urgent = client.training.create("urgent", replace(long, iters=3), schedule=JobSchedule(priority=50))
        assert eventually(lambda: state(client, urgent) is JobState.SUCCEEDED, 180)
        reached = step(client, first)
        assert eventually(lambda: step(client, first) > reached, 180)
        assert client.training.get(first.id).attempts == 2
        client.training.cancel(first.id)
        assert eventually(lambda: state(client, first) is JobState.CANCELLED, 180)
    assert daemon.stop() == 0
