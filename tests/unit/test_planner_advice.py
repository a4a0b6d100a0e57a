from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from optiq_core.bench.planner_cases import CONFIGS
from optiq_core.planner.advice import advise
from optiq_core.planner.ceilings import Ceiling
from optiq_core.planner.cli import plan
from optiq_core.planner.extrapolate import extrapolate
from optiq_core.planner.plan import StepPlan
from optiq_core.planner.planner import Planner
from optiq_core.planner.shape import StepShape
from optiq_core.train.config import TrainConfig
from optiq_core.train.data import Example


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of which there is nothing but its configuration."""
    path = tmp_path_factory.mktemp("base")
    (path / "config.json").write_text(json.dumps({**CONFIGS["llama"], "num_hidden_layers": 3, "dtype": "float32"}))
    return path


def ceiling(free: int, resources: int = 0) -> Ceiling:
    return Ceiling(device="cpu", backend="cpu", limit_bytes=free, resources=resources)


CONFIG = TrainConfig(data_path="", batch_size=4, max_seq_length=257, num_layers=-1)


def test_followed_advice_fits(folder: Path) -> None:
    need = Planner(folder, ceiling(1 << 40)).judge(CONFIG).bound_bytes
    planner = Planner(folder, ceiling(int(need * 0.8)))
    verdict = advise(planner, CONFIG)
    assert not verdict.fits
    assert verdict.advice
    for advice in verdict.advice:
        assert planner.judge(msgspec.structs.replace(CONFIG, **advice.changes)).fits
    assert advise(Planner(folder, ceiling(need)), CONFIG).fits


def test_fewer_rows_at_a_time_cost_a_little_time_and_nothing_else(folder: Path) -> None:
    config = msgspec.structs.replace(CONFIG, batch_size=8, grad_checkpoint=True, loss_chunk=64)
    need = Planner(folder, ceiling(1 << 40)).judge(config).bound_bytes
    verdict = advise(Planner(folder, ceiling(int(need * 0.8))), config)
    assert verdict.advice[0].changes == {"micro_batch_size": 4}
    assert 1.0 < verdict.advice[0].time_ratio < 1.5


def test_resources_are_a_cliff_of_their_own(folder: Path) -> None:
    verdict = Planner(folder, ceiling(1 << 40, resources=10)).judge(CONFIG)
    assert not verdict.fits
    assert "resources" in verdict.reasons[0]


def test_lengths_that_are_advised_are_those_of_the_data(folder: Path) -> None:
    examples = [Example(tuple(range(1, n + 1)), 1) for n in [40] * 90 + [257] * 10]
    need = Planner(folder, ceiling(1 << 40), examples=examples).judge(CONFIG).bound_bytes
    verdict = advise(Planner(folder, ceiling(int(need * 0.5)), examples=examples), CONFIG)
    shorter = [a for a in verdict.advice if "max_seq_length" in a.changes]
    assert shorter[0].changes["max_seq_length"] == 40
    assert "10% of the examples" in shorter[0].text


def test_the_longest_that_fits_fits_and_the_next_does_not(folder: Path) -> None:
    config = msgspec.structs.replace(CONFIG, batch_size=1)
    planner = Planner(folder, ceiling(120_000_000))
    found = planner.longest(config)
    assert found > 64
    assert planner.judge(msgspec.structs.replace(config, max_seq_length=found)).fits
    assert not planner.judge(msgspec.structs.replace(config, max_seq_length=found * 5 // 4)).fits


def test_the_longest_is_no_longer_than_the_models_context(folder: Path) -> None:
    context = CONFIGS["llama"]["max_position_embeddings"]
    lean = msgspec.structs.replace(CONFIG, batch_size=1, num_layers=1, loss_chunk=64, grad_checkpoint=True)
    assert Planner(folder, ceiling(1 << 40)).longest(lean) == context


def test_the_command_plans_from_a_configuration_alone(folder: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(plan, [str(folder), "--max-seq-length", "129", "--json"])
    assert done.exit_code == 0, done.output
    step = json.loads(done.stdout)["step"]
    parts = ("base_bytes", "adapter_bytes", "optimizer_bytes", "activation_bytes", "temporary_bytes")
    assert sum(step[name] for name in parts) == step["peak_bytes"]
    refused = runner.invoke(plan, [str(folder), "--max-seq-length", "129", "--limit-gb", "0.05"])
    assert refused.exit_code == 1
    assert "does not fit" in refused.output
    mapped = runner.invoke(plan, [str(folder), "--map", "--device", "m3-max-36gb", "--json", "--batch-size", "1"])
    peaks = [row["step"]["peak_bytes"] for row in json.loads(mapped.stdout)["map"]]
    assert peaks == sorted(peaks)


def test_a_step_that_is_too_long_to_trace_takes_no_less_than_a_shorter_one() -> None:
    """Also where the peak moves between the widths, so that a parabola through them would bend down."""
    template = StepPlan(
        **dict.fromkeys(StepPlan.__struct_fields__[:10], 0),
        where="",
        backward=False,
        primitive="",
        flops=0,
        rows=1,
        width=0,
        positions=0,
    )  # type: ignore[arg-type]

    def bent(shape: StepShape) -> StepPlan:
        peak = {32: 1000, 48: 2000, 64: 2500}[shape.width]
        return msgspec.structs.replace(template, peak_bytes=peak, width=shape.width, live_buffers=10 * shape.width)

    found = extrapolate(bent, StepShape(1, 1024, 1024), (32, 48, 64))
    assert found.peak_bytes == 2500 + (1024 - 64) * 500 // 16
    assert found.live_buffers == 10240
    assert found.extrapolated
