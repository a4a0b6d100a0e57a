from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from optiq_core.train.events import Cancelled, Event, Failed, Heartbeat, Progress, Started, Succeeded, decode_event
from tests.unit.train_tiny import write_tiny_base, write_tiny_data


class Trainer:
    """A trainer process on a job folder."""

    def __init__(self, job_dir: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "optiq_daemon.trainer_process", "--job-dir", str(job_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def until(self, kind: type) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = decode_event(line)
            if isinstance(event, kind):
                return event
        raise AssertionError(f"ended without {kind.__name__}")

    def say(self, command: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command)
        self.process.stdin.flush()

    def finish(self, *, close_stdin: bool = False) -> tuple[int, list[Event]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if close_stdin:
            self.process.stdin.close()
        events = [decode_event(line) for line in self.process.stdout]
        code = self.process.wait(timeout=60)
        self.process.stdin.close()
        self.process.stdout.close()
        return code, [event for event in events if not isinstance(event, Heartbeat)]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    job_dir = tmp_path / "job"
    job_dir.mkdir()
    write_tiny_base(tmp_path / "base")
    write_tiny_data(tmp_path / "data")
    return configure(job_dir)


def configure(job_dir: Path, **fields: Any) -> Path:
    defaults = {"data_path": str(job_dir.parent / "data"), "iters": 6, "steps_per_report": 1, "rank": 4}
    content = {
        "base_path": str(job_dir.parent / "base"),
        "config": {**defaults, **fields},
        "adapter_id": "sums",
        "job": "tenants/default/jobs/one",
    }
    (job_dir / "job.json").write_text(json.dumps(content))
    return job_dir


def metric_steps(job: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (job / "metrics.jsonl").read_text().splitlines()]


def test_a_job_runs_to_an_adapter_and_a_second_start_finds_it_done(job: Path) -> None:
    trainer = Trainer(job)
    trainer.until(Heartbeat)
    code, events = trainer.finish()
    assert code == 0
    assert isinstance(events[0], Started)
    assert events[-1] == Succeeded(str(job / "adapter"))
    assert [event.step for event in events if isinstance(event, Progress)] == [1, 2, 3, 4, 5, 6]
    assert metric_steps(job) == [1, 2, 3, 4, 5, 6]
    assert {path.name for path in (job / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapters.safetensors",
        "optiq_lora_config.json",
    }
    code, events = Trainer(job).finish()
    assert (code, events) == (0, [Succeeded(str(job / "adapter"))])


def test_cancel_ends_the_job_and_leaves_no_adapter(job: Path) -> None:
    configure(job, iters=100_000)
    trainer = Trainer(job)
    trainer.until(Progress)
    trainer.say(b"whatever\ncancel\n")
    code, events = trainer.finish()
    assert (code, events[-1]) == (0, Cancelled())
    assert not (job / "adapter").exists()


@pytest.mark.parametrize(
    "how",
    ["stop", "sigkill", pytest.param("eof", marks=pytest.mark.slow), pytest.param("sigterm", marks=pytest.mark.slow)],
)
def test_an_interrupted_job_goes_on_to_the_same_adapter(job: Path, how: str) -> None:
    configure(job, iters=12, steps_per_checkpoint=2)
    whole = job.parent / "whole"
    whole.mkdir()
    (whole / "job.json").write_bytes((job / "job.json").read_bytes())
    assert Trainer(whole).finish()[0] == 0

    configure(job, iters=1_000_000, steps_per_checkpoint=2)
    trainer = Trainer(job)
    while trainer.until(Progress).step < 4:
        pass
    if how == "sigkill":
        trainer.process.kill()
    elif how == "sigterm":
        trainer.process.terminate()
    elif how == "stop":
        trainer.say(b"stop\n")
    code, events = trainer.finish(close_stdin=how == "eof")
    assert code == (-9 if how == "sigkill" else 3)
    assert not any(isinstance(event, Succeeded | Failed | Cancelled) for event in events)
    reached = metric_steps(job)[-1]

    configure(job, iters=max(12, reached + 1), steps_per_checkpoint=2)
    code, events = Trainer(job).finish()
    assert code == 0
    assert isinstance(events[0], Started)
    assert 0 < events[0].step <= reached
    assert metric_steps(job) == list(range(1, max(12, reached + 1) + 1))
    if reached < 12:
        for name, value in load_file(whole / "adapter" / "adapters.safetensors").items():
            assert np.array_equal(value, load_file(job / "adapter" / "adapters.safetensors")[name]), name


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"rank": 0}, "rank: must be between 1 and 256"),
        ({"rnk": 1}, "rnk"),
        ({"target_modules": ["nope"]}, "'nope' is in none of the adapted blocks"),
        ({"data_path": "/nowhere"}, "/nowhere: no such folder"),
    ],
)
def test_a_job_that_cannot_run_says_why(job: Path, fields: dict[str, Any], reason: str) -> None:
    configure(job, **fields)
    code, events = Trainer(job).finish()
    assert code == 1
    assert isinstance(events[-1], Failed)
    assert reason in events[-1].reason


def test_bad_data_and_a_missing_base_are_named(job: Path) -> None:
    (job.parent / "data" / "train.jsonl").write_text('{"text": "a"}\n{"text": 1}\n')
    _, events = Trainer(job).finish()
    assert isinstance(events[-1], Failed)
    assert "train.jsonl line 2: 'text' must be a string" in events[-1].reason
    content = json.loads((job / "job.json").read_text())
    (job / "job.json").write_text(json.dumps({**content, "base_path": str(job / "nowhere")}))
    _, events = Trainer(job).finish()
    assert isinstance(events[-1], Failed)
    assert "nowhere" in events[-1].reason


@pytest.mark.slow
def test_heartbeats_come_while_the_job_is_quiet(job: Path) -> None:
    configure(job, iters=1_000_000, steps_per_report=1_000_000, steps_per_checkpoint=1_000_000)
    trainer = Trainer(job)
    trainer.until(Started)
    began = time.monotonic()
    trainer.until(Heartbeat)
    trainer.until(Heartbeat)
    assert time.monotonic() - began < 10
    trainer.say(b"cancel\n")
    assert trainer.finish()[0] == 0


@pytest.mark.slow
def test_a_killed_job_with_every_kind_of_state_goes_on_to_the_same_adapter(job: Path) -> None:
    fields: dict[str, Any] = {
        "iters": 40,
        "steps_per_checkpoint": 3,
        "steps_per_eval": 2,
        "patience": 1000,
        "optimizer": "adamw",
        "weight_decay": 0.05,
        "lr_schedule": "cosine",
        "warmup_steps": 4,
        "clip_norm": 0.5,
        "dropout": 0.1,
        "pack_length": 64,
        "batch_size": 2,
        "rank_scaling": "adalora",
        "loraplus_ratio": 4.0,
    }
    configure(job, **fields)
    whole = job.parent / "whole"
    whole.mkdir()
    (whole / "job.json").write_bytes((job / "job.json").read_bytes())
    assert Trainer(whole).finish()[0] == 0
    for _ in range(2):
        trainer = Trainer(job)
        began = trainer.until(Started).step
        while trainer.until(Progress).step < began + 7:
            pass
        trainer.process.kill()
        assert trainer.finish(close_stdin=True)[0] == -9
    assert not (job / "adapter").exists()
    assert Trainer(job).finish()[0] == 0
    killed, uninterrupted = (load_file(folder / "adapter" / "adapters.safetensors") for folder in (job, whole))
    assert killed.keys() == uninterrupted.keys()
    assert all(np.array_equal(value, killed[name]) for name, value in uninterrupted.items())
    losses = [
        [(line["train_loss"], line.get("valid_loss"), line["learning_rate"]) for line in map(json.loads, lines)]
        for lines in ((folder / "metrics.jsonl").read_text().splitlines() for folder in (job, whole))
    ]
    assert losses[0] == losses[1]
