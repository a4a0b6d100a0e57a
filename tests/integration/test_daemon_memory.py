"""Jobs and memory on a real daemon: refusals whose advice runs, crashes that go on with less."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from optiq_client import Client, Job, JobState, TrainingConfig
from optiq_core.planner.calibration import UNPROVEN_MARGIN, CalibrationStore
from tests.integration.conftest import Daemon, eventually

DaemonMaker = Callable[..., Daemon]


def settings(folder: Path, **fields: object) -> TrainingConfig:
    folder.mkdir(exist_ok=True)
    # Long ones are rare: the peak comes late.
    texts = ["AB" * 12] * 60 + ["ABCDEFGH" * 30] * 8
    (folder / "train.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    made = TrainingConfig(data_path=str(folder), rank=4, num_layers=-1, batch_size=8, iters=30, max_seq_length=256)
    return replace(made, steps_per_report=1, steps_per_checkpoint=2, **fields)


def trainer_of(daemon: Daemon) -> psutil.Process | None:
    assert daemon.process is not None
    for child in psutil.Process(daemon.process.pid).children():
        if any("trainer_process" in part for part in child.cmdline()):
            return child
    return None


def events(client: Client, job: Job) -> dict[str, str]:
    found: dict[str, str] = {}
    with client.events.watch(from_revision=1) as stream:
        for event in stream:
            if event.resource == job.name:
                found[event.type] = event.message
                if event.type in ("job.succeeded", "job.failed"):
                    break
    return found


@pytest.fixture
def daemon_here(another_daemon: DaemonMaker, tiny_folder: Path) -> Iterator[Daemon]:
    daemon = another_daemon("--model", str(tiny_folder), "--settle-ms", "100", "--drain-seconds", "1")
    yield daemon
    assert daemon.stop() == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are set on Linux only")
def test_a_trainer_that_runs_out_of_memory_goes_on_with_less(daemon_here: Daemon, tmp_path: Path) -> None:
    with daemon_here.start() as client:
        job = client.training.create("limited", settings(tmp_path / "data", iters=60))
        assert eventually(lambda: (p := client.training.get(job.id).progress) is not None and p.step >= 3, 180)
        trainer = trainer_of(daemon_here)
        assert trainer is not None
        data = int(Path(f"/proc/{trainer.pid}/status").read_text().split("VmData:")[1].split()[0]) * 1024
        # Room for what it has, not for the long examples that are still to come.
        trainer.rlimit(psutil.RLIMIT_DATA, (data, data))
        assert eventually(lambda: client.training.get(job.id).state.ended, 180)
        done = client.training.get(job.id)
        assert done.state is JobState.SUCCEEDED, done.state_reason
        assert done.attempts > 1
        told = events(client, job)
        assert "micro_batch_size" in told["job.reduced"]
        assert "micro_batch_size" in done.reduced
        assert done.progress is not None and done.progress.step == 60
        learned = CalibrationStore(daemon_here.home / "calibration.json").of("cpu")
        assert learned.observations >= 1
        assert learned.margin > UNPROVEN_MARGIN, "what was promised to fit did not"


@pytest.mark.slow
def test_a_killed_trainer_goes_on_with_less(daemon_here: Daemon, tmp_path: Path) -> None:
    with daemon_here.start() as client:
        job = client.training.create("killed", settings(tmp_path / "data", iters=60))
        assert eventually(lambda: (p := client.training.get(job.id).progress) is not None and p.step >= 4, 180)
        trainer = trainer_of(daemon_here)
        assert trainer is not None
        os.kill(trainer.pid, signal.SIGKILL)
        assert eventually(lambda: client.training.get(job.id).state.ended, 180)
        done = client.training.get(job.id)
        assert done.state is JobState.SUCCEEDED, done.state_reason
        assert done.attempts == 2
        assert done.reduced == "micro_batch_size 4"
        assert "SIGKILL" in events(client, job)["job.reduced"]
