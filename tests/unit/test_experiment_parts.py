"""Experiments: puzzles have right answers, splits are disjoint, statistics are those of the books."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optiq_core.experiments.charts import draw
from optiq_core.experiments.puzzles import PUZZLES, draw_splits, roman
from optiq_core.experiments.report import make_report
from optiq_core.experiments.run import RunResult
from optiq_core.experiments.spec import PRESETS, Configuration, Experiment, SpecError, load_experiment
from optiq_core.experiments.stats import Comparison, compare, pareto_front, proportion, with_holm

VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}


@given(st.integers(1, 3999))
def test_a_roman_numeral_reads_back(number: int) -> None:
    letters = [VALUES[letter] for letter in roman(number)]
    assert sum(-v if v < max(letters[i:]) else v for i, v in enumerate(letters)) == number
    assert not re.search(r"I{4}|X{4}|C{4}|V{2}|L{2}|D{2}", roman(number))


def test_equations_hold_and_ciphers_are_one_shift() -> None:
    for item in PUZZLES["equations"].make_items():
        a, b, c = map(int, re.findall(r"\d+", item.question))
        assert a * int(item.answer.removeprefix("x = ")) + b == c
    for item in PUZZLES["ciphers"].make_items()[:200]:
        shifts = {(ord(q) - ord(a)) % 26 for q, a in zip(item.question, item.answer, strict=True) if q != " "}
        assert shifts == {3}


def test_bits_and_gravity_answer_what_they_ask() -> None:
    for item in PUZZLES["bits"].make_items():
        left, name, right = re.split(r" (AND|OR|XOR) ", item.question)
        a, b = (int(text.replace(" ", ""), 2) for text in (left, right))
        assert int(item.answer.replace(" ", ""), 2) == {"AND": a & b, "OR": a | b, "XOR": a ^ b}[name]
    for item in PUZZLES["gravity"].make_items():
        g, t = map(int, re.findall(r"= (\d+)", item.question))
        assert float(item.answer.removesuffix(" m")) == g * t * t / 2


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(6, 60), st.integers(0, 30), st.integers(6, 60))
def test_splits_are_disjoint_balanced_and_reproducible(seed: int, train: int, valid: int, test: int) -> None:
    splits = draw_splits(PUZZLES, train=train, valid=valid, test=test, seed=seed)
    assert splits == draw_splits(PUZZLES, train=train, valid=valid, test=test, seed=seed)
    parts = (splits.train, splits.valid, splits.test)
    assert [len(part) for part in parts] == [train, valid, test]
    questions = [(i.item.system, i.item.question) for part in parts for i in part]
    assert len(set(questions)) == len(questions)
    for part in parts:
        counts = [sum(i.category == name for i in part) for name in PUZZLES]
        assert max(counts) - min(counts) <= 1


def test_an_interval_and_a_test_with_known_values() -> None:
    # Wilson's interval for 35 of 100, and the exact sign test of 1 against 9.
    interval = proportion(35, 100)
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2636, 0.4475)
    first = [[True] * 1 + [False] * 9 + [True] * 10]
    second = [[False] * 1 + [True] * 9 + [True] * 10]
    found = compare(first, second)
    assert (found.only_first, found.only_second, found.difference) == (1, 9, 0.4)
    assert found.p_value == pytest.approx(22 / 1024)
    assert 0 < found.low < 0.4 < found.high
    assert compare(first, first).p_value == 1.0
    # Twenty ties say little: three in twenty might still differ.
    assert (compare(first, first).low, compare(first, first).high) == (-0.15, 0.15)
    with pytest.raises(ValueError, match="same"):
        compare(first, [[True]])


def test_holm_corrects_step_by_step() -> None:
    # Holm, 1979: the smallest of three counts thrice, the next twice, and none is below the one before it.
    found = [Comparison(0.1, 0, 0.2, 1, 2, p) for p in (0.04, 0.01, 0.03)]
    assert [c.holm for c in with_holm(found)] == pytest.approx([0.06, 0.03, 0.06])


def result(name: str, seed: int, right: list[bool], parameters: int) -> RunResult:
    return RunResult(
        configuration=name, seed=seed, digest="", right=right, categories=["a"] * len(right), parameters=parameters
    )


def test_what_is_said_is_no_stronger_than_the_interval() -> None:
    names = ("base", "same", "close", "better", "worse", "unclear", "slight")
    experiment = Experiment(name="e", seeds=[0, 1], configurations=[Configuration(name=n) for n in names])
    half = [i % 2 == 0 for i in range(400)]
    answers = {
        "base": half,
        "same": half,
        # 16 of 100 gained, 14 lost: the interval stays within five hundredths only below.
        "close": [not r if i // 2 % 25 < (7 if r else 8) else r for i, r in enumerate(half)],
        "better": [r or i % 4 == 1 for i, r in enumerate(half)],
        "worse": [r and i % 4 == 0 for i, r in enumerate(half)],
        "unclear": [not r for r in half],
        "slight": [not r if i // 2 < (26 if r else 38) else r for i, r in enumerate(half)],
    }
    results = [result(n, seed, answers[n], 61 if n == "same" else 100) for n in names for seed in (0, 1)]
    report = make_report(experiment, results)
    said = dict(zip(names[1:], report.as_dict()["findings"], strict=True))
    assert "same against base is as good, to within 5%: +0.0%" in said["same"]
    assert said["same"].endswith("with 39% fewer parameters.")
    assert "is better: +25.0%" in said["better"] and said["better"].endswith("with as many parameters.")
    assert "is worse: -25.0%" in said["worse"]
    assert "cannot be told apart: a loss of 5% is not excluded" in said["unclear"]
    assert "is not worse by 5% or more: +2.0%" in said["close"]
    assert "is better taken alone, not among all comparisons of this table: +3.0%" in said["slight"]
    turned = make_report(experiment, results, against="better", margin=0.3)
    assert turned.rows[3].against is None
    there, back = report.pairs["base", "better"], report.pairs["better", "base"]
    assert (back.low, back.high, back.p_value) == (-there.high, -there.low, there.p_value)
    assert len(turned.as_dict()["pairs"]) == 42
    assert "base against better is worse" in turned.as_markdown()
    with pytest.raises(SpecError, match="--against nope: no finished run of it; there are base, same"):
        make_report(experiment, results, against="nope")


def test_a_chart_names_every_configuration_and_is_plain_text() -> None:
    names = [f"c-{i}" for i in range(12)]
    experiment = Experiment(name="e", seeds=[0], configurations=[Configuration(name=n) for n in names])
    results = [result(n, 0, [j < 2 * i for j in range(30)], 100 * i) for i, n in enumerate(names)]
    text = draw(make_report(experiment, results), width=80)
    assert "\x1b" not in text
    assert all(f" {name}" in text for name in names)
    assert max(map(len, text.splitlines()[:16])) <= 80


@pytest.mark.slow
def test_the_bootstrap_covers_a_true_difference_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for repeat in range(40):
        first = [list(rng.random(150) < 0.4) for _ in range(4)]
        second = [list(rng.random(150) < 0.5) for _ in range(4)]
        found = compare(first, second, seed=repeat)
        inside += found.low <= 0.1 <= found.high
    assert inside >= 33


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 1)), min_size=1, max_size=20))
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    front = pareto_front(points)
    assert front
    for i, (cost, value) in enumerate(points):
        beaten = any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points)
        assert (i in front) != beaten


def test_the_presets_can_be_read() -> None:
    for name in PRESETS:
        experiment = load_experiment(name)
        assert experiment.name == name
        assert len({experiment.digest(c) for c in experiment.configurations}) == len(experiment.configurations)


def test_the_presets_digests_are_those_of_the_results_that_exist() -> None:
    logic = load_experiment("logic")
    assert {c.name: logic.digest(c) for c in logic.configurations} == {
        "bare": "07bb41a3f8e55257",
        "constant-8": "eadb98abbefb5030",
        "by-bits-8": "7c2ce0a014c3e28d",
        "constant-16": "c22597fe249b5d76",
        "constant-matched": "4bfd9aff51a9a8e4",
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seeds = [1]\nname = 'a'\nconfigurations = []", "there are none"),
        ("seeds = []\nname = 'a'\n[[configurations]]\nname = 'x'", "seeds: give at least one"),
        ("seeds = [1]\nname = 'a'\n[[configurations]]\nname = '../x'", "'../x' is not a folder name"),
        ("seeds = [1]\nname = 'a'\n[[configurations]]\nname = 'x'\nbase = 'y'", "'y' is not in bases"),
        ("seeds = [1]\nname = 'a'\n[[configurations]]\nname = 'x'\ntrain = {rank = 0}", "configurations.x.train: rank"),
        ("seeds = [1]\nname = 'a'\n[items]\ncategories = ['z']\n[[configurations]]\nname = 'x'", "'z' is none of"),
        ("seeds = [1]\nname = 'a'\nspeed = 3\n[[configurations]]\nname = 'x'", "speed"),
        ("not toml", "Expected"),
    ],
)
def test_a_wrong_file_is_refused_with_its_field(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(text)
    with pytest.raises(SpecError, match=re.escape(said)) as caught:
        load_experiment(file)
    assert str(file) in str(caught.value)
