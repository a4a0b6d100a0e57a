from __future__ import annotations

import json
from pathlib import Path

import pytest

from optiq_core.adapters.format import read_manifest
from optiq_core.experiments import pirate, tasks
from optiq_core.experiments.tasks import DEMO_JOBS, TASKS, DemoJob, Task, boxed, number_name, score, write_data
from optiq_core.train.data import check_data


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
    assert [number_name(number) for number in (0, 14, 40, 47, 100, 602, 812, 999)] == [
        "zero",
        "fourteen",
        "forty",
        "forty-seven",
        "one hundred",
        "six hundred two",
        "eight hundred twelve",
        "nine hundred ninety-nine",
    ]
    with pytest.raises(ValueError, match="between 0 and 999"):
        number_name(1000)
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


@pytest.mark.parametrize("job", DEMO_JOBS, ids=lambda job: job.task.name)
def test_the_demos_jobs_are_valid_as_they_stand(job: DemoJob, tmp_path: Path) -> None:
    train, held_out = job.items()
    assert (len(train), len(held_out)) == (400, 40)
    config = job.config(tmp_path)
    assert config.violations() == []
    assert config.data_path == str(tmp_path)


def test_the_ready_adapter_is_small_and_in_our_format() -> None:
    folder = Path(tasks.__file__).with_name("ready") / "pirate"
    manifest = read_manifest(folder)
    assert (manifest.format, manifest.max_rank, len(manifest.modules)) == ("optiq", 4, 16)
    assert manifest.disk_bytes < 300_000
    assert "README.md" not in manifest.files


def test_the_ready_adapters_data_leaves_the_content_to_the_base() -> None:
    asked = pirate.questions()
    assert len(set(asked)) == len(asked) > 70
    assert not any("France" in question for question in asked)
    assert pirate.first_sentence("A. B.") == "A."
    assert pirate.first_sentence("A\nb.") == "A b."
    assert pirate.first_sentence("no end") is None
    assert pirate.in_manner("A.") == "Arrr, matey! A. Yo ho ho!"
