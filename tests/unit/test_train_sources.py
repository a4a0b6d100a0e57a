from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optiq_core.errors import DataError
from optiq_core.train import token_cache
from optiq_core.train.config import TrainConfig
from optiq_core.train.data import TrainingData, load_data
from optiq_core.train.hub import read_splits
from optiq_core.train.records import check_data
from tests.unit.train_tiny import byte_tokenizer, chat, write_jsonl, write_tiny_data

PAIR = {"prompt": "a", "chosen": "yes", "rejected": "no"}


def load(source: Path, cache: Path | None = None, tokenizer: Any = None, **fields: Any) -> TrainingData:
    config = TrainConfig(data_path="d", **fields)
    return load_data(source, tokenizer or byte_tokenizer(), config, cache_dir=cache)


@pytest.mark.parametrize(("record", "objective"), [(chat("a+b", "c"), "sft"), (PAIR, "dpo"), ({"text": ""}, "sft")])
def test_cached_tokens_are_those_that_were_made(tmp_path: Path, record: Any, objective: Any) -> None:
    records = [record, record] if objective == "dpo" else [record, chat("1", "2")]
    write_jsonl(tmp_path / "data" / "train.jsonl", records)
    plain = load(tmp_path / "data", objective=objective)
    for _ in range(2):
        assert load(tmp_path / "data", tmp_path / "cache", objective=objective) == plain
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_the_cache_is_used_and_can_be_passed_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_tiny_data(tmp_path / "data")
    first = load(data, tmp_path / "cache")
    shorter = max(len(example.tokens) for example in first.train.examples) - 1
    assert load(data, tmp_path / "cache", max_seq_length=shorter).train.cut > 0

    def refuse(*args: Any, **options: Any) -> Any:
        raise AssertionError("tokenized again")

    monkeypatch.setattr(token_cache, "encode", refuse)
    assert load(data, tmp_path / "cache") == first
    assert load(data, tmp_path / "cache", retokenize=True) == first
    for change in ({"mask_prompt": False}, {"tokenizer": other_template()}):
        with pytest.raises(AssertionError, match="tokenized again"):
            load(data, tmp_path / "cache", **change)
    write_tiny_data(data, seed=5)
    with pytest.raises(AssertionError, match="tokenized again"):
        load(data, tmp_path / "cache")


def other_template() -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = str(tokenizer.chat_template).replace("user", "human") + "."
    return tokenizer


def test_a_template_that_tells_the_time_is_never_cached(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% if strftime_now is defined %}{% endif %}" + str(tokenizer.chat_template)
    load(write_tiny_data(tmp_path / "data"), tmp_path / "cache", tokenizer)
    assert not (tmp_path / "cache").exists()


def test_damaged_and_unwritable_caches_cost_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_tiny_data(tmp_path / "data")
    first = load(data, tmp_path / "cache")
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:50])
    assert load(data, tmp_path / "cache") == first
    (tmp_path / "file").write_text("")
    assert load(data, tmp_path / "file") == first
    monkeypatch.setattr(token_cache, "_KEPT", 1)
    assert load(data, tmp_path / "cache", mask_prompt=False).train.examples
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_single_file_is_trained_on_without_validation(tmp_path: Path) -> None:
    folder = write_tiny_data(tmp_path / "data")
    data = load(folder / "train.jsonl")
    assert data.train == load(folder).train
    assert data.valid.examples == []
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"empty\.jsonl: no examples"):
        load(tmp_path / "empty.jsonl")


def test_rows_of_a_hub_dataset_are_records_like_lines() -> None:
    rows = [{**chat("a", "b"), "text": None, "id": 1}, {"messages": None, "text": "c", "id": 2}]
    train, valid = read_splits("owner/name", {"train": rows, "validation": [{"text": "d"}], "test": []})
    assert [record.format for record in (*train, *valid)] == ["chat", "text", "text"]
    with pytest.raises(DataError, match=r"owner/name train row 2: keys must be .*; found 'id'"):
        read_splits("owner/name", {"train": [{"text": "a"}, {"id": 3}]})
    with pytest.raises(DataError, match="owner/name: no examples in a split named train; there are test"):
        read_splits("owner/name", {"test": [{"text": "a"}]})


def test_a_hub_id_without_the_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"someone/something: no such path; .*pip install 'optiq\[hub\]'"):
        check_data("someone/something")
    with pytest.raises(DataError, match=r"/no/where: no such folder"):
        check_data("/no/where")


def test_packed_tokens_keep_large_ids(tmp_path: Path) -> None:
    from optiq_core.train.data import Example

    examples = [Example((250_000, 1), 1, 7), Example((), 1, 8)]
    (tmp_path / "x.npz").write_bytes(token_cache._packed(examples))
    assert token_cache._read(tmp_path / "x.npz") == examples
    np.savez(tmp_path / "y.npz", tokens=np.array([json.dumps({})], object))
    assert token_cache._read(tmp_path / "y.npz") is None
