"""Per-layer KV sensitivity, its allocation, `optiq kv-cache`, and the parts of `optiq bench kv`, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from click.testing import CliRunner

from optiq_core.bench.kv_probes import Probes
from optiq_core.bench.kv_timing import step_times
from optiq_core.errors import KVConfigError
from optiq_core.kv import cli
from optiq_core.kv.config import LayerCache, parse_uniform, read_kv_config
from optiq_core.kv.factory import plan_caches
from optiq_core.kv.sensitivity import LayerSensitivity, allocate_layers, mean_bits, measure_layers
from optiq_core.quant.calibration import read_tokens
from optiq_core.quant.partial import PartialResults

from .tiny import tiny_base, tiny_model


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optiq_core.quant.partial.cache_path", lambda: tmp_path / "cache")


def test_fewer_bits_cost_more_and_results_outlive_the_process() -> None:
    base = tiny_base(hidden=256)
    text = read_tokens(base.tokenizer, most=64, length=32)
    told: list[str] = []

    def measure() -> list[LayerSensitivity]:
        return measure_layers(
            base.model, [0, 1], (2.0, 8.0), text, method="affine", group_size=64,
            partial=PartialResults("test"), progress=lambda share, what: told.append(what),
        )  # fmt: skip

    measured = measure()
    assert [layer.layer_idx for layer in measured] == [0, 1]
    assert all(layer.kl[2.0] > 10 * layer.kl[8.0] > 0 for layer in measured)
    assert "layer 1, 2 bits" in told
    told.clear()
    assert measure() == measured
    assert told == ["measured"]


def test_the_sensitive_layer_gets_the_bits() -> None:
    model = tiny_model(layers=4, hidden=256)
    measured = [LayerSensitivity(i, {4.0: 0.5 if i == 2 else 0.01, 8.0: 0.001}) for i in range(4)]
    chosen = allocate_layers(model, measured, 5, method="affine", group_size=64)
    assert {layer.layer_idx: layer.bits for layer in chosen} == {0: 4, 1: 4, 2: 8, 3: 4}
    assert mean_bits(model, chosen) == 5
    with pytest.raises(KVConfigError, match="raise --target-bits"):
        allocate_layers(model, measured, 3.9, method="affine", group_size=64)


def test_half_bits_are_allocated_exactly() -> None:
    model = tiny_model(layers=2, hidden=256)
    measured = [LayerSensitivity(i, {2.5: 0.5 - i / 10, 3.5: 0.1}) for i in range(2)]
    chosen = allocate_layers(model, measured, 3, method="turboquant", group_size=64)
    assert chosen == (LayerCache(0, 3.5, 64, "turboquant"), LayerCache(1, 2.5, 64, "turboquant"))


def test_kv_cache_writes_the_seed_document_s_file_and_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base(hidden=256)
    monkeypatch.setattr("optiq_core.base.resolve_base", lambda model, progress: Path(model))
    monkeypatch.setattr("optiq_core.base.load_base", lambda folder, profile: base)
    monkeypatch.setattr("optiq_core.quant.partial.content_digest", lambda folder: "tiny")
    arguments = ["embedded", "--target-bits", "6", "--candidate-bits", "4,8", "-o", str(tmp_path / "kv"), "--json"]
    result = CliRunner().invoke(cli.kv_cache, [*arguments, "--calibration-tokens", "64", "--context", "32"])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    layers = read_kv_config(Path(printed["path"]))
    assert sorted(layer.bits for layer in layers) == [4, 8] and printed["mean_bits"] == 6
    raw = json.loads((tmp_path / "kv" / "kv_config.json").read_text())
    assert all(set(entry) == {"layer_idx", "bits", "group_size"} for entry in raw)
    table = json.loads((tmp_path / "kv" / "kv_sensitivity.json").read_text())
    assert [row["layer_idx"] for row in table["layers"]] == [0, 1] and table["kl"] > 0
    plan = plan_caches(base.model, layers)
    assert printed["bytes_per_token"] == plan.bytes_per_token < plan.float_bytes_per_token


def test_candidates_that_no_cache_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(cli.kv_cache, ["x", "--target-bits", "4", "--candidate-bits", "four", "-o", "y"])
    assert result.exit_code == 2 and "numbers separated by commas" in result.output


def test_probes_lose_nothing_with_float_and_less_with_more_bits() -> None:
    base: Any = tiny_base(hidden=256)
    probes = Probes(base, quick=True)
    plans = {name: plan_caches(base.model, parse_uniform(name)) for name in ("float", "turboquant:2", "turboquant:8")}
    rows = {name: probes.measure(plan) for name, plan in plans.items()}
    exact, rough, fine = rows.values()
    assert exact["kl"] < 1e-6 and exact["attention_error"] < 1e-5 and exact["needle"] == 1.0
    assert rough["kl"] > 20 * fine["kl"] > 0
    assert rough["attention_error"] > 10 * fine["attention_error"] > 0
    assert fine["needle"] >= rough["needle"]
    assert set(exact["needle_close"].values()) == {1.0} and exact["ppl_rel"] == 1 and exact["ppl_rel_se"] == 0
    for row in (rough, fine):
        shares = list(row["needle_close"].values())
        assert shares == sorted(shares) and row["ppl_rel_se"] > 0
    assert rough["needle_close"]["0.1"] < fine["needle_close"]["0.1"]
    times = step_times(base.model, plans, probes.layer_vectors, (8, 300), rounds=1)
    assert all(set(row) == {"8", "300"} and min(row.values()) > 0 for row in times.values())
    assert mx.isfinite(mx.array([row["ppl"] for row in rows.values()])).all()
