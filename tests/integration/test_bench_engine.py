"""The benches of the engine run on the real model and report what they promise."""

from __future__ import annotations

import pytest

from optiq_core.bench import mixed, residency, ttft

pytestmark = pytest.mark.slow


def test_mixed_reports_parity_and_ratios() -> None:
    result = mixed.run(adapters=4, concurrency=4, ranks="4,16", dora=True, stock=True, quick=True)
    assert result["parity_ok"] is True
    names = ("base", "same", "mixed", "serial", "stock")
    assert all(result[f"{name}_tps"] > 0 for name in names)
    assert {"mixed_over_base", "mixed_over_same", "mixed_over_serial", "base_over_stock"} <= set(result)


def test_residency_reports_mounts_and_flatness() -> None:
    result = residency.run(quick=True)
    assert set(result["tps"]) == {"8", "12"}
    assert 0 < result["mount_ms_p50"] <= result["mount_ms_p99"]
    # q and v of 30 blocks at rank 8, float32.
    assert result["bytes_per_adapter"] == 30 * 8 * 4 * (576 + 576 + 576 + 192)


def test_ttft_reports_both_kinds_and_the_stall() -> None:
    result = ttft.run(quick=True, targets="qv")
    assert 0 < result["warm_ms"]["p50"] <= result["warm_ms"]["p99"]
    assert result["cold_ms"]["p50"] > 0
    assert result["stall_steps_max"] >= 0
    assert set(result["stall_steps"]) == {"mount", "first_use"}
    assert result["long_prompt"]["tokens_per_stream_meanwhile"] > 1
    assert result["long_prompt"]["longest_wait_steps"] > 0
