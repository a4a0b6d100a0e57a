from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optiq_core.errors import PlanError
from optiq_core.planner.calibration import Calibration, CalibrationStore, Observation, learn
from optiq_core.planner.ceilings import RESOURCE_LIMIT, ceiling_of

_GIB = 1 << 30


def test_a_simulated_mac_has_the_working_set_and_the_resources_of_its_kind() -> None:
    large, small = ceiling_of("m3-max-36gb"), ceiling_of("m2-24gb")
    assert (large.backend, large.limit_bytes, large.resources) == ("metal", 27 * _GIB, RESOURCE_LIMIT)
    assert small.limit_bytes == 16 * _GIB


def test_what_is_resident_reserved_and_forbidden_is_taken_off() -> None:
    ceiling = ceiling_of("h100-80gb", resident_bytes=10 * _GIB)
    assert ceiling.free_bytes == 80 * _GIB - 10 * _GIB - ceiling.reserve_bytes
    assert ceiling_of("h100-80gb", user_bytes=5 * _GIB).free_bytes == 5 * _GIB
    assert ceiling_of("m3-max-36gb", user_resources=1000).resources == 1000
    assert ceiling_of("h100-80gb", resident_bytes=90 * _GIB).free_bytes == 0


def test_a_gpu_of_this_machine_says_its_own_limits() -> None:
    info = {"max_recommended_working_set_size": 12345678, "resource_limit": 7}
    metal = ceiling_of("metal", device_info=info)
    assert (metal.limit_bytes, metal.resources) == (12345678, 7)
    assert ceiling_of("cpu").limit_bytes > 0


def test_an_unknown_device_is_refused_by_name() -> None:
    with pytest.raises(PlanError, match="m3-max-36gb"):
        ceiling_of("m3")


def test_a_constant_bias_is_learned_and_the_margin_shrinks_with_evidence() -> None:
    few = learn([Observation(1000, 1100)])
    many = learn([Observation(p, round(p * 1.1)) for p in range(1000, 9000, 500)])
    assert few.expected(2000) == pytest.approx(2200)
    assert many.expected(2000) == pytest.approx(2200, rel=0.01)
    assert many.margin < few.margin < Calibration().margin + 0.02


@given(st.lists(st.tuples(st.integers(1, 1 << 40), st.integers(1, 1 << 40)), max_size=20))
def test_no_record_makes_a_calibration_unbounded(seen: list[tuple[int, int]]) -> None:
    calibration = learn([Observation(p, m) for p, m in seen])
    assert 0.85 <= calibration.factor <= 1.25
    assert calibration.margin > 0
    assert calibration.bound(10**9) >= calibration.expected(10**9) >= 0


def test_observations_are_kept_per_device_and_a_damaged_file_says_what_to_do(tmp_path: Path) -> None:
    store = CalibrationStore(tmp_path / "deep" / "calibration.json")
    assert store.of("cpu") == Calibration()
    store.add("cpu", Observation(100, 110))
    assert store.of("cpu").observations == 1
    assert store.of("metal").observations == 0
    (tmp_path / "deep" / "calibration.json").write_text("{")
    with pytest.raises(PlanError, match="delete it"):
        store.of("cpu")
