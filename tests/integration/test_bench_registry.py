"""The benches of the registry, at their smallest."""

from __future__ import annotations

import pytest

from optiq_daemon.bench import drop, evict, fairness

pytestmark = pytest.mark.slow


def test_drop_measures_every_count_and_the_streams() -> None:
    result = drop.run(counts=[1, 2], rounds=1, streams=1)
    assert set(result["drop_to_routable_ms"]) == {"1", "2"}
    assert all(value >= result["settle_ms"] for value in result["drop_to_routable_ms"].values())
    assert result["stream_tokens_per_second"]["during"] > 0


def test_evict_swaps_and_answers_everybody() -> None:
    result = evict.run(adapters=8, budget=3, clients=3, rounds=1, tokens=2)
    assert result["errors"] == 0 and result["swaps"] >= 5


def test_fairness_measures_both_sides() -> None:
    result = fairness.run(streams=6, requests=2, rows=4, sentences=2, share_seconds=4.0)
    assert result["p99_ratio"] > 0 and result["flood_tokens_per_second"] > 0
    assert set(result["shares"]) == {"heavy", "light"} and result["tokens"]["light"] > 0
