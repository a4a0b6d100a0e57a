"""Bases of an experiment: converted once, found again, and clear about a wrong setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from optiq_core.experiments.bases import Bases, plan_settings
from optiq_core.experiments.spec import BaseSpec, Configuration, Experiment, SpecError
from tests.unit.train_tiny import write_tiny_base


def test_a_base_is_converted_once_and_found_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTIQ_CACHE", str(tmp_path / "cache"))
    folder = write_tiny_base(tmp_path / "base", quantized=False)
    convert = {"target_bpw": 7.0, "method": "static", "group_sizes": [32], "protect": []}
    specs = {"plain": BaseSpec(model=str(folder)), "mixed": BaseSpec(model=str(folder), convert=convert)}
    experiment = Experiment(name="e", seeds=[0], configurations=[Configuration(name="c")], bases=specs)
    said: list[str] = []
    assert Bases(experiment, progress=said.append).locate("plain") == folder
    mixed = Bases(experiment, progress=said.append).locate("mixed")
    assert (mixed / "optiq_metadata.json").exists()
    assert said == [f"converting {folder} to 7 bits per weight (static)"]
    assert Bases(experiment, progress=said.append).locate("mixed") == mixed
    assert len(said) == 1


def test_a_wrong_setting_is_named() -> None:
    with pytest.raises(SpecError, match="'target_bits' is none of target_bpw"):
        plan_settings({"target_bits": 4})
    with pytest.raises(SpecError, match=r"convert: .*target_bpw"):
        plan_settings({"target_bpw": "four"})
