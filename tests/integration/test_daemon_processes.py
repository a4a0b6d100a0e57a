"""Processes that are killed, and daemons that end: nothing is lost, nothing hangs, nothing stays RUNNING."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from optiq_client import (
    AdapterState,
    Chunk,
    Client,
    EngineState,
    Finished,
    HealthStatus,
    JobState,
    TrainingConfig,
    Unavailable,
)
from tests.adapters import write_adapter
from tests.integration.conftest import Daemon, eventually

PROMPT = "Count to a hundred."
DaemonMaker = Callable[..., Daemon]


def write_data(folder: Path, examples: int = 16) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    # A few tokens each: what is tested is the processes, and a trainer yields to everything else on the machine.
    lines = [f'{{"text": "number {n} {n}"}}\n' for n in range(examples)]
    (folder / "train.jsonl").write_text("".join(lines))
    return folder


def config(data: Path, **fields: object) -> TrainingConfig:
    values = {"rank": 2, "num_layers": 2, "batch_size": 1, "iters": 6, "steps_per_report": 1, "steps_per_checkpoint": 2}
    return TrainingConfig(data_path=str(data), max_seq_length=16, **{**values, **fields})


def trainer_of(daemon: Daemon) -> psutil.Process | None:
    assert daemon.process is not None
    for child in psutil.Process(daemon.process.pid).children():
        if any("trainer_process" in part for part in child.cmdline()):
            return child
    return None


def test_a_killed_engine_comes_back_with_the_same_adapters(daemon: Daemon, client: Client) -> None:
    for index in range(2):
        write_adapter(daemon.drop / f"kept-{index}", seed=40 + index)
        assert eventually(lambda i=index: client.adapters.get(f"kept-{i}").state is AdapterState.RESIDENT)
    write_adapter(daemon.drop / "unmounted", seed=50)
    assert eventually(lambda: client.adapters.get("unmounted").state is AdapterState.RESIDENT)
    client.adapters.unload("unmounted")
    before = {a.id: a.digest for a in client.adapters.list() if a.state is AdapterState.RESIDENT}
    status = client.runtime.status()
    with pytest.raises(Unavailable) as caught:
        for event in client.generate(PROMPT, adapter="kept-0", max_tokens=500).events():
            if isinstance(event, Chunk):
                os.kill(status.engine.pid, signal.SIGKILL)
    assert caught.value.retry_after and caught.value.reason == "ENGINE_LOST"
    # The daemon answers meanwhile, and says what is going on.
    assert eventually(lambda: client.runtime.status(timeout=2).engine.state is EngineState.RESTARTING)
    assert client.health() is HealthStatus.NOT_SERVING
    with pytest.raises(Unavailable) as refused:
        client.generate(PROMPT).read()
    assert refused.value.retry_after
    assert {a.id: a.digest for a in client.adapters.list()}.items() >= before.items()
    after = client.wait_ready(120)
    assert after.engine.pid != status.engine.pid and after.engine.restarts == status.engine.restarts + 1
    now = {a.id: a.digest for a in client.adapters.list() if a.state is AdapterState.RESIDENT}
    assert now == before
    assert client.adapters.get("unmounted").state is AdapterState.AVAILABLE
    assert all(a.active_leases == 0 for a in client.adapters.list())
    assert client.generate(PROMPT, adapter="kept-1", max_tokens=4).read()


def test_a_killed_trainer_resumes_and_its_adapter_is_mounted(daemon: Daemon, client: Client) -> None:
    data = write_data(daemon.home / "data")
    job = client.training.create("killed", config(data, iters=12), request_id="killed-1")
    assert client.training.create("killed", config(data, iters=12), request_id="killed-1").name == job.name
    killed = False
    steps: list[int] = []
    states: list[JobState] = []
    for update in client.training.watch(job.id):
        states.append(update.job.state)
        if update.progress is not None:
            steps.append(update.progress.step)
            if update.progress.step >= 4 and not killed:
                trainer = trainer_of(daemon)
                if trainer is not None:
                    trainer.kill()
                    killed = True
    done = client.training.get(job.id)
    assert killed and done.state is JobState.SUCCEEDED, done.state_reason
    # A kill may have been the system's, out of memory: the job is planned again, with less.
    assert done.attempts == 2 and JobState.PLANNING in states[1:] and done.reduced
    assert steps[-1] == 12
    adapter = client.adapters.get("killed")
    assert adapter.state is AdapterState.RESIDENT and adapter.digest == done.adapter_digest
    assert adapter.format == "optiq"
    assert client.generate(PROMPT, adapter="killed", max_tokens=4).read()
    replayed = [u.progress.step for u in client.training.watch(job.id) if u.progress is not None]
    assert replayed == sorted(set(replayed)) and replayed[-1] == 12
    client.training.delete(job.id)


@pytest.mark.slow
def test_a_trainer_that_always_dies_fails_its_job_with_a_reason(daemon: Daemon, client: Client) -> None:
    data = write_data(daemon.home / "data")
    job = client.training.create("doomed", config(data, iters=1000, steps_per_checkpoint=1000))
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.2):
            trainer = trainer_of(daemon)
            if trainer is not None:
                trainer.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        for _ in client.training.watch(job.id, timeout=120):
            pass
    finally:
        over.set()
        killer.join()
    done = client.training.get(job.id)
    assert done.state is JobState.FAILED and done.attempts == 3
    assert "SIGKILL" in done.state_reason and "3 times" in done.state_reason


def test_jobs_are_refused_and_cancelled_with_reasons(daemon: Daemon, client: Client) -> None:
    bad = daemon.home / "bad-data"
    bad.mkdir(exist_ok=True)
    (bad / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": 5}\n')
    refused = client.training.create("refused", config(bad))
    assert eventually(lambda: client.training.get(refused.id).state is JobState.REFUSED)
    assert "train.jsonl" in client.training.get(refused.id).state_reason
    data = write_data(daemon.home / "data")
    running = client.training.create("running", config(data, iters=100_000))
    queued = client.training.create("queued", config(data))
    assert eventually(lambda: client.training.get(running.id).state is JobState.RUNNING, 60)
    assert client.training.get(queued.id).state in (JobState.QUEUED, JobState.PLANNING, JobState.WAITING)
    assert client.training.cancel(queued.id).state is JobState.CANCELLED
    with pytest.raises(Exception, match="cancel it first"):
        client.training.delete(running.id)
    assert eventually(lambda: (p := client.training.get(running.id).progress) is not None and p.step > 0, 60)
    client.training.cancel(running.id)
    assert eventually(lambda: client.training.get(running.id).state is JobState.CANCELLED, 60)
    assert trainer_of(daemon) is None
    assert [job.id for job in client.training.list()][:2] == [queued.id, running.id]
    for job in (refused, queued, running):
        client.training.delete(job.id)
        assert not (daemon.home / "jobs" / job.id).exists()


def test_events_replay_in_order(client: Client) -> None:
    revisions, types = [], set()
    last = 0
    with client.events.watch(from_revision=1) as events:
        status_seen = False
        for event in events:
            revisions.append(event.revision)
            types.add(event.type)
            last = event.revision
            if event.type == "engine.serving":
                status_seen = True
            if status_seen and len(revisions) >= 5:
                break
    assert revisions == list(range(1, last + 1))
    assert {"daemon.started", "engine.serving"} <= types


def test_a_second_daemon_on_the_same_home_is_refused(daemon: Daemon, another_daemon: DaemonMaker) -> None:
    second = another_daemon()
    second.home, home = daemon.home, second.home
    try:
        second.start(wait=False)
        assert second.process is not None and second.process.wait(30) == 1
        assert f"serves {daemon.home} already" in daemon.output()
    finally:
        second.home = home


@pytest.mark.slow
def test_sigterm_drains_and_the_next_start_knows_everything(another_daemon: DaemonMaker) -> None:
    daemon = another_daemon("--drain-seconds", "60")
    client = daemon.start()
    write_adapter(daemon.drop / "survivor", seed=60)
    assert eventually(lambda: client.adapters.get("survivor").state is AdapterState.RESIDENT)
    digest = client.adapters.get("survivor").digest
    job = client.training.create(
        "continued", config(write_data(daemon.home / "data"), iters=60, steps_per_checkpoint=4)
    )
    assert eventually(lambda: (p := client.training.get(job.id).progress) is not None and p.step >= 6, 90)
    generation = client.generate(PROMPT, adapter="survivor", max_tokens=40)
    events = generation.events()
    while not isinstance(next(events), Chunk):
        pass
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    with pytest.raises(Unavailable):
        client.generate(PROMPT).read()
    # The stream that was running is served to its end.
    assert isinstance(list(events)[-1], Finished)
    assert daemon.process.wait(60) == 0, daemon.output()
    assert not (daemon.home / "run" / "daemon.pid").exists()
    write_adapter(daemon.drop / "while-away", seed=61)
    client.close()
    client = daemon.start()
    adapter = client.adapters.get("survivor")
    assert adapter.state is AdapterState.RESIDENT and adapter.digest == digest
    assert eventually(lambda: client.adapters.get("while-away").state is AdapterState.RESIDENT)
    for _ in client.training.watch(job.id):
        pass
    done = client.training.get(job.id)
    assert done.state is JobState.SUCCEEDED and done.attempts == 2, done.state_reason
    assert client.adapters.get("continued").digest == done.adapter_digest
    client.close()
    assert daemon.stop(signal.SIGINT) == 0


@pytest.mark.slow
def test_a_killed_daemon_takes_its_children_along_and_recovers(another_daemon: DaemonMaker) -> None:
    daemon = another_daemon()
    client = daemon.start()
    write_adapter(daemon.drop / "survivor", seed=62)
    assert eventually(lambda: client.adapters.get("survivor").state is AdapterState.RESIDENT)
    job = client.training.create("recovered", config(write_data(daemon.home / "data"), iters=16))
    assert eventually(lambda: (p := client.training.get(job.id).progress) is not None and p.step >= 4, 90)
    assert daemon.process is not None
    children = psutil.Process(daemon.process.pid).children()
    assert len(children) == 2
    daemon.stop(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, "children end when their stdin does"
    client.close()
    client = daemon.start()
    assert client.adapters.get("survivor").state is AdapterState.RESIDENT
    for _ in client.training.watch(job.id):
        pass
    done = client.training.get(job.id)
    assert done.state is JobState.SUCCEEDED, done.state_reason
    client.close()
    assert daemon.stop() == 0


def test_a_base_that_cannot_be_loaded_ends_the_daemon_with_the_reason(another_daemon: DaemonMaker) -> None:
    daemon = another_daemon("--model", "/no/such/base")
    daemon.start(wait=False)
    assert daemon.process is not None and daemon.process.wait(60) == 1
    assert daemon.output().splitlines()[-1].startswith("Error: the engine cannot start: /no/such/base")
