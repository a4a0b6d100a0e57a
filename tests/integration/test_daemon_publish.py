"""What becomes of a trained adapter: the gate, the route, the base as the first thing to beat."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from optiq_client import Client, InvalidRequest, Job, JobPublication, JobState, TrainingConfig
from optiq_daemon.cli import main as cli
from tests.integration.conftest import Daemon, eventually


def settings(folder: Path, **fields: object) -> TrainingConfig:
    folder.mkdir(exist_ok=True)
    for name in ("train", "valid"):
        (folder / f"{name}.jsonl").write_text('{"text": "one two three four"}\n' * 8)
    made = TrainingConfig(data_path=str(folder), rank=4, num_layers=-1, batch_size=4, iters=12, max_seq_length=32)
    return replace(made, learning_rate=5e-3, **fields)


def done(client: Client, job: Job) -> Job:
    assert eventually(lambda: client.training.get(job.id).state.ended, 180)
    ended = client.training.get(job.id)
    assert ended.state is JobState.SUCCEEDED, ended.state_reason
    return ended


@pytest.mark.slow
def test_the_gate_lets_the_better_through_and_keeps_the_worse(
    tiny_daemon: Daemon, tiny_client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client, gated = tiny_client, JobPublication(gate=True)
    good = settings(tmp_path / "data")
    first = done(client, client.training.create("gated", good, publication=gated))
    assert first.gate_result is not None and first.gate_result.passed
    assert first.gate_result.present == "base"
    assert first.gate_result.loss < first.gate_result.present_loss
    served = client.adapters.get("gated").digest
    assert served == first.adapter_digest

    # One step of the same training cannot beat twelve.
    worse = done(client, client.training.create("gated", replace(good, iters=1), publication=gated))
    assert worse.gate_result is not None and not worse.gate_result.passed
    assert worse.gate_result.present == "gated@v1"
    assert worse.gate_result.present_loss == pytest.approx(first.gate_result.loss, rel=1e-4)
    assert "kept but not published" in worse.state_reason and worse.adapter_digest == ""
    assert client.adapters.get("gated").digest == served

    # What the gate kept is published from the command line, if one wants it after all.
    assert cli.main(["jobs", "publish", worse.id, "--json", "--home", str(tiny_daemon.home)]) == 0
    digest = json.loads(capsys.readouterr().out)["adapter_digest"]
    assert digest and client.adapters.get("gated").digest == digest

    # Cancelled while it is scored, it is not published, though it might be better.
    scored = client.training.create("gated", replace(good, iters=24), publication=gated)
    assert eventually(lambda: client.training.get(scored.id).state_reason.startswith("scoring"), 180)
    client.training.cancel(scored.id)
    assert eventually(lambda: client.training.get(scored.id).state is JobState.CANCELLED)
    assert client.adapters.get("gated").digest == digest
    with pytest.raises(InvalidRequest, match=r"valid\.jsonl"):
        (tmp_path / "data" / "valid.jsonl").unlink()
        client.training.create("gated", good, publication=gated)


@pytest.mark.slow
def test_a_new_version_gets_a_small_share_of_a_route(tiny_client: Client, tmp_path: Path) -> None:
    client, config = tiny_client, settings(tmp_path / "data", iters=2)
    canary = JobPublication(route="canary", route_weight=10)
    first = done(client, client.training.create("canary", config, publication=canary))
    assert client.routes.get("canary").targets == {"base": 90, "canary@v1": 10}
    assert "canary@v1 gets 10 of 100" in first.state_reason
    done(client, client.training.create("canary", replace(config, seed=1), publication=canary))
    assert client.routes.get("canary").targets == {"base": 81, "canary@v1": 9, "canary@v2": 10}

    client.routes.set("other", {"canary": 1})
    done(client, client.training.create("canary", replace(config, seed=2), publication=replace(canary, route="other")))
    assert client.routes.get("other").targets == {"canary@v2": 90, "canary@v3": 10}, "it does not follow the name"
