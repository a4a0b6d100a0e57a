"""`optiq bench tui` on a small load."""

from __future__ import annotations

import pytest

from optiq_tui.bench.input import SCREENS, run


@pytest.mark.slow
def test_every_key_is_painted() -> None:
    result = run(adapters=50, events=20, requests=5, keys=3)
    assert set(result["input_ms_by_screen"]) == set(SCREENS.values())
    assert result["input_ms"]["p50"] > 0
    assert result["frames"] >= 9
    assert result["lost_views"] == 0, "the bench's daemon does not answer all that the dashboard reads"
