"""Jobs are planned before they run: too large is refused with advice, and advice that is followed runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from optiq_client import JobState, TrainingConfig
from tests.integration.conftest import Daemon, eventually


@pytest.mark.slow
def test_a_job_that_would_not_fit_is_refused_with_advice_that_runs(
    another_daemon: Callable[..., Daemon], tiny_folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text('{"text": "ABCDEFGHIJKLMNOPABCDEFGHIJKLMNOPABCDEFGHIJKLMNOP"}\n' * 16)
    one = another_daemon("--model", str(tiny_folder), "--settle-ms", "100", "--drain-seconds", "1")
    (one.home / "config.toml").write_text("training_memory_mb = 3\n")
    with one.start() as client:
        config = TrainingConfig(data_path=str(data), batch_size=16, iters=2, num_layers=-1)
        plan = client.training.plan(config)
        assert not plan.fits
        assert plan.bound_bytes > plan.free_bytes
        assert plan.advice
        assert client.training.list() == []

        large = client.training.create("large", config)
        assert eventually(lambda: client.training.get(large.id).state is JobState.REFUSED, 120)
        refused = client.training.get(large.id)
        assert "does not fit" in refused.state_reason
        assert refused.plan is not None
        assert [advice.text for advice in refused.plan.advice] == [advice.text for advice in plan.advice]

        smaller = next(a for a in plan.advice if a.text.startswith("micro_batch_size"))
        rows = int(smaller.text.split()[1].rstrip(","))
        small = client.training.create("small", replace(config, micro_batch_size=rows))
        assert eventually(lambda: client.training.get(small.id).state.ended, 120)
        done = client.training.get(small.id)
        assert done.state is JobState.SUCCEEDED, done.state_reason
        assert done.plan is not None
        assert done.plan.fits
        assert done.progress is not None
        # The trainer's peak counts loading and the whole process, on a base of a few hundred kilobytes.
        assert done.progress.peak_memory_bytes < 3_000_000
