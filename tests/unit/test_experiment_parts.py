"""Experiments: puzzles have right answers, splits are disjoint, statistics are those of the books."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optiq_core.experiments.puzzles import PUZZLES, draw_splits, roman
from optiq_core.experiments.spec import PRESETS, SpecError, load_experiment
from optiq_core.experiments.stats import compare, pareto_front, proportion

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
    with pytest.raises(ValueError, match="same"):
        compare(first, [[True]])


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
