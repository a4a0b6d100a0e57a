from __future__ import annotations

import json
from pathlib import Path

import pytest

from optiq_core.experiments.tasks import TASKS, Task, boxed, score, to_roman, write_data
from optiq_core.train.data import check_data


def from_roman(text: str) -> int:
    values = [{"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}[letter] for letter in text]
    return sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))


@pytest.mark.parametrize("task", TASKS.values(), ids=str)
def test_items_are_unique_and_the_split_is_disjoint_and_repeatable(task: Task) -> None:
    items = task.make_items()
    assert len({item.question for item in items}) == len(items)
    train, held_out = task.split(train=len(items) - 40, held_out=40)
    assert len(held_out) == 40
    assert {item.question for item in train}.isdisjoint(item.question for item in held_out)
    assert task.split(train=len(items) - 40, held_out=40) == (train, held_out)
    assert task.split(train=10, held_out=40, seed=1)[1] != held_out
    with pytest.raises(ValueError, match="questions"):
        task.split(train=len(items), held_out=1)


def test_answers_are_right() -> None:
    assert all(from_roman(to_roman(number)) == number for number in range(1, 400))
    with pytest.raises(ValueError, match="between 1 and 399"):
        to_roman(400)
    answers = {item.question: item.answer for item in TASKS["units"].make_items()}
    assert answers["7 km in m"] == "7000 m"
    assert answers["25 cm in mm"] == "250 mm"


def test_only_the_exact_boxed_answer_scores() -> None:
    item = next(item for item in TASKS["units"].make_items() if item.question == "7 km in m")
    outputs = [r"\boxed{7000 m}", r"so \boxed{1} no, \boxed{ 7000 m }.", "7000 m", r"\boxed{7000 km}", r"\boxed{7000m}"]
    assert [score([item], [output]) for output in outputs] == [1, 1, 0, 0, 0]
    assert boxed("nothing") is None


def test_written_data_is_what_the_trainer_reads(tmp_path: Path) -> None:
    train, held_out = TASKS["units"].split(train=20, held_out=5)
    write_data(tmp_path / "data", train, held_out)
    summary = check_data(tmp_path / "data")
    assert (summary.train, summary.valid, summary.formats) == (20, 5, ("chat",))
    first = json.loads((tmp_path / "data" / "train.jsonl").read_text().splitlines()[0])
    assert [message["role"] for message in first["messages"]] == ["system", "user", "assistant"]
    assert first["messages"][-1]["content"] == f"\\boxed{{{train[0].answer}}}"
