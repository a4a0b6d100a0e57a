"""Training beside serving: what each policy does to jobs and requests of a real daemon."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from optiq_client import Chunk, Client, JobState, TrainingConfig, Unavailable
from tests.integration.conftest import Daemon, eventually


def start_job(client: Client, data: Path) -> str:
    data.mkdir()
    (data / "train.jsonl").write_text('{"text": "number 1 and number 2"}\n' * 16)
    config = TrainingConfig(data_path=str(data), rank=2, num_layers=-1, batch_size=2, iters=1_000_000)
    job = client.training.create("beside", config)
    assert eventually(lambda: step(client, job.id) > 0, 180)
    return job.id


def step(client: Client, job: str) -> int:
    progress = client.training.get(job).progress
    return progress.step if progress is not None else 0


def tokens(client: Client, prompt: str) -> int:
    """How many the random base answers before it happens to end."""
    answer = client.generate(prompt, raw=True, max_tokens=400)
    answer.read()
    assert answer.finished is not None
    return answer.finished.usage.completion_tokens


@pytest.fixture
def daemon_with(another_daemon: Callable[..., Daemon], tiny_folder: Path) -> Callable[[str], Daemon]:
    def make(policy: str) -> Daemon:
        daemon = another_daemon("--model", str(tiny_folder), "--settle-ms", "100", "--drain-seconds", "5")
        (daemon.home / "config.toml").write_text(f'training_policy = "{policy}"\n')
        return daemon

    return make


@pytest.mark.slow
def test_a_trainer_holds_while_a_request_is_served(daemon_with: Callable[[str], Daemon], tmp_path: Path) -> None:
    daemon = daemon_with("pause-when-busy")
    with daemon.start() as client:
        prompt = next(text for text in ("Count.", *"abcdefgh") if tokens(client, text) == 400)
        job = start_job(client, tmp_path / "data")
        events = client.generate(prompt, raw=True, max_tokens=400).events()
        while not isinstance(next(events), Chunk):
            pass
        holds = eventually(lambda: "holds" in client.training.get(job).state_reason)
        rest = list(events)
        assert holds or len(rest) < 20, "the answer was over before anyone looked"
        before = step(client, job)
        assert eventually(lambda: step(client, job) > before, 180), "and goes on when it is quiet"
        assert client.training.get(job).state_reason == ""
        client.training.cancel(job)
        assert eventually(lambda: client.training.get(job).state is JobState.CANCELLED, 180)
    assert daemon.stop() == 0


@pytest.mark.slow
def test_exclusive_training_has_the_machine_to_itself(daemon_with: Callable[[str], Daemon], tmp_path: Path) -> None:
    daemon = daemon_with("exclusive")
    with daemon.start() as client:
        assert client.generate("Count.", raw=True, max_tokens=4).read() is not None
        job = start_job(client, tmp_path / "data")
        with pytest.raises(Unavailable) as refused:
            client.generate("Count.", raw=True, max_tokens=4).read()
        assert refused.value.reason == "TRAINING_EXCLUSIVE" and refused.value.retry_after
        client.training.pause(job)
        assert eventually(lambda: client.training.get(job).state is JobState.PAUSED, 180)
        assert client.generate("Count.", raw=True, max_tokens=4).read() is not None
    assert daemon.stop() == 0
