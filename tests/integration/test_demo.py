"""The demo as a person runs it: a process of its own, the real model, real training."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_demo_shows_what_it_claims() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "optiq_daemon", "demo", "--json"],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    report = json.loads(result.stdout)
    assert len(report["steps"]) == 7
    assert report["drop_to_routable_ms"] < 1500
    assert report["batch"]["max_adapters_in_one_step"] >= 4
    assert report["tokens_per_second"] > 0
    for task, score in report["scores"].items():
        assert score["adapter"] >= 0.6 * score["n"] > score["base"], task
    assert {answer["adapter"] for answer in report["answers"]} == {"", *report["adapters"]}
