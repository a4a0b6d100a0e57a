"""`optiq data check`: what a person is told of a data folder."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from optiq_core.train.data_cli import data
from optiq_core.train.survey import FileSurvey
from tests.unit.train_tiny import chat, write_jsonl, write_tiny_base


def check(*words: str | Path) -> Result:
    return CliRunner().invoke(data, ["check", *(str(word) for word in words)])


def test_a_folder_is_told_with_its_lines(tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "base")
    folder = tmp_path / "data"
    records = [chat("1+1", "2"), chat("1+2", "3"), chat("1+1", "2"), chat("x" * 300, "4"), chat("y", "5" * 300)]
    write_jsonl(folder / "train.jsonl", records)
    write_jsonl(folder / "valid.jsonl", [chat("1+2", "3"), chat("2+2", "4")])

    shown = check(folder, "--base", base, "--max-seq-length", "128")
    assert shown.exit_code == 0, shown.output
    first, lengths, *rest = shown.stdout.splitlines()
    assert first.startswith("train.jsonl: 5 examples (chat), ")
    assert "p50" in lengths and "█" in lengths
    assert rest[:3] == [
        "  longer than 128 tokens, would be cut: 2 (line 4, 5)",
        "  no token to train on, would be dropped: 1 (line 4)",
        "  same tokens as an earlier line: 1 (line 3 = 1)",
    ]
    assert rest[-1] == "  also in train.jsonl, so that the loss here says less: 1 (line 1)"

    train, valid = json.loads(check(folder, "--base", base, "--json").stdout)["files"]
    assert (train["examples"], train["duplicates"], train["cut"]) == (5, {"3": 1}, [])
    assert sum(count for *_, count in train["histogram"]) == 5
    assert 0 < train["trained_tokens"] < train["tokens"]
    assert valid["in_train"] == [1]


def test_what_cannot_be_trained_on_is_an_error(tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "base")
    folder = tmp_path / "data"
    write_jsonl(folder / "train.jsonl", [{"text": ""}])
    nothing = check(folder, "--base", base)
    assert (nothing.exit_code, "no example has a token to train on" in nothing.stderr) == (1, True)
    (folder / "train.jsonl").write_text('{"text": "a"}\nnot json\n')
    assert "train.jsonl line 2: not JSON" in check(folder).stderr
    assert check(tmp_path / "none").exit_code == 1


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=50))
def test_every_example_is_in_one_bucket(lengths: list[int]) -> None:
    survey = FileSurvey("train.jsonl", lengths=lengths)
    buckets = survey.histogram()
    assert sum(count for *_, count in buckets) == len(lengths)
    for low, high, count in buckets:
        assert count == sum(low <= length <= high for length in lengths)
    assert len(buckets) <= 16
