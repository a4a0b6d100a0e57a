"""Bench ``quant`` on a tiny model: its rows, and that equal size is equal size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from optiq_core.bench.quant import quant
from tests.unit.quant_tiny import save_tiny


def test_mixed_precision_is_compared_at_the_size_of_uniform_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTIQ_CACHE", str(tmp_path / "cache"))
    folder = save_tiny(tmp_path / "m", tied=False)
    ran = CliRunner().invoke(quant, ["--model", str(folder), "--quick", "--json"])
    assert ran.exit_code == 0, ran.output
    result = json.loads(ran.stdout)
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == ["float", "8-bit", "uniform 4-bit", "mixed"]
    for row in rows.values():
        assert set(row) == {"name", "bpw", "kl", "ppl", "accuracy", "bytes"}
    assert rows["float"]["kl"] == pytest.approx(0, abs=1e-6)
    assert rows["float"]["bytes"] == pytest.approx((folder / "model.safetensors").stat().st_size, rel=0.05)
    assert 0 < rows["8-bit"]["kl"] < rows["uniform 4-bit"]["kl"]
    assert rows["mixed"]["bytes"] <= rows["uniform 4-bit"]["bytes"]
    assert rows["mixed"]["bpw"] == pytest.approx(rows["uniform 4-bit"]["bpw"], abs=0.05)
    assert result["kl_uniform_over_mixed"] == pytest.approx(rows["uniform 4-bit"]["kl"] / rows["mixed"]["kl"])
    # Random weights differ in sensitivity too: the allocation must find it.
    assert result["kl_uniform_over_mixed"] > 1.5
    assert result["limit"] > 1
    assert 0 <= result["allocator"]["gap"] < 0.05
