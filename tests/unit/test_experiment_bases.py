"""Bases of an experiment: converted once, found again, and clear about a wrong setting."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from optiq_core.base.converted import converted
from optiq_core.base.metadata import read_metadata
from optiq_core.errors import BaseModelError, QuantizationError
from optiq_core.experiments.bases import Bases, plan_settings
from optiq_core.experiments.fixed import choose_options
from optiq_core.experiments.spec import BaseSpec, Configuration, Experiment, SpecError
from optiq_core.quant.cli import convert
from optiq_core.quant.modules import find_quant_targets
from optiq_core.quant.options import Option
from optiq_core.quant.plan import PlanSettings
from tests.unit.tiny import tiny_model
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
    assert len(said) == 1 and said[0].startswith("converting base (once): --target-bpw 7 --candidate-bits 4,8")
    assert Bases(experiment, progress=said.append).locate("mixed") == mixed
    assert len(said) == 1


def test_bits_by_rule_are_those_of_the_last_rule_that_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTIQ_CACHE", str(tmp_path / "cache"))
    folder = write_tiny_base(tmp_path / "base", quantized=False)
    rules = ["*=4", "*.self_attn.*=8", "embeddings=16", "lm_head=8"]
    specs = {
        "ruled": BaseSpec(model=str(folder), convert={"fixed": rules, "group_size": 32}),
        "odd": BaseSpec(model=str(folder), convert={"fixed": "*=4"}),
    }
    bases = Bases(
        Experiment(name="e", seeds=[0], configurations=[Configuration(name="c")], bases=specs), progress=lambda _: None
    )
    bits = read_metadata(bases.locate("ruled")).layer_bits
    assert bits["model.embed_tokens"] == 32
    assert {bits[path] for path in bits if "self_attn" in path} == {8}
    assert {bits[path] for path in bits if ".mlp." in path} == {4}
    with pytest.raises(SpecError, match=r"bases.*.convert: .*fixed"):
        bases.locate("odd")


def test_a_malformed_rule_is_named() -> None:
    for rule in ("*", "*=7", "=4", "*=four"):
        with pytest.raises(QuantizationError, match=re.escape(repr(rule))):
            choose_options([], [rule], 64)
    targets = find_quant_targets(tiny_model(), (Option(4, 64),))
    with pytest.raises(QuantizationError, match="nope: matches no module"):
        choose_options(targets, ["nope=4"], 64)
    assert choose_options(targets, ["*=4", "*=16"], 64) == {}


@pytest.mark.parametrize(
    "settings",
    [
        PlanSettings(target_bpw=4.5),
        PlanSettings(target_bpw=5.25, candidate_bits="3,mxfp4,6", group_sizes=(32, 64), method="gradient"),
        PlanSettings(target_bpw=6, allocator="exact", protect=("lm_head", "*.v_proj")),
        PlanSettings(target_bpw=6, protect=()),
    ],
)
def test_settings_are_what_convert_reads_from_their_arguments(settings: PlanSettings) -> None:
    read = convert.make_context("convert", ["model", *settings.arguments]).params
    groups = read["group_sizes"] and tuple(map(int, read["group_sizes"].split(",")))
    protect = tuple(pattern for pattern in read["protect"] if pattern != "none")
    again = {name: read[name] for name in ("target_bpw", "candidate_bits", "method", "allocator")}
    assert PlanSettings(**again, group_sizes=groups, protect=protect) == settings


def test_a_conversion_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTIQ_CACHE", str(tmp_path / "cache"))
    folder = write_tiny_base(tmp_path / "base", quantized=False)
    with pytest.raises(BaseModelError, match=r"base: the conversion failed: .*--target-bpw 1"):
        converted(folder, "digest", ("--target-bpw", "1", "--method", "static"), lambda text: None)


def test_a_wrong_setting_is_named() -> None:
    with pytest.raises(SpecError, match="'target_bits' is none of target_bpw"):
        plan_settings({"target_bits": 4})
    with pytest.raises(SpecError, match=r"convert: .*target_bpw"):
        plan_settings({"target_bpw": "four"})
