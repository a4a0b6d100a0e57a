"""What the benches share."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optiq_core.bench.harness import describe_run, emit, median_ratio, paired, percentile


def test_paired_interleaves_and_reverses_every_other_round() -> None:
    order: list[str] = []

    def run(name: str) -> float:
        order.append(name)
        return float(len(order))

    figures = paired({"a": lambda: run("a"), "b": lambda: run("b")}, rounds=3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert figures == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}


def test_a_drift_of_the_machine_leaves_the_ratio_alone() -> None:
    assert median_ratio([10.0, 20.0, 5.0], [5.0, 10.0, 2.5]) == 2.0


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 100))
def test_percentile_is_a_value_that_enough_do_not_exceed(values: list[float], percent: float) -> None:
    found = percentile(values, percent)
    assert found in values
    assert sum(v <= found for v in values) >= len(values) * percent / 100 - 1e-9


def test_output_is_one_object_or_lines(capsys: pytest.CaptureFixture[str]) -> None:
    result = {"tps": {"8": 1.5}, "parity_ok": True, "run": describe_run()}
    emit(result, as_json=True)
    assert json.loads(capsys.readouterr().out)["tps"] == {"8": 1.5}
    emit(result, as_json=False)
    out = capsys.readouterr().out
    assert "tps.8" in out and "run.versions.mlx" in out
