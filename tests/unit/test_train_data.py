from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx_lm.tuner import datasets

from optiq_core.errors import DataError
from optiq_core.train.batches import BatchOrder, padded, sequential
from optiq_core.train.config import TrainConfig
from optiq_core.train.data import Example, check_data, load_data
from tests.unit.train_tiny import byte_tokenizer, chat, write_jsonl

TOKENIZER = byte_tokenizer()


def load(folder: Path, **fields: Any) -> Any:
    return load_data(folder, TOKENIZER, TrainConfig(data_path=str(folder), **fields))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", r"train.jsonl line 2: not JSON"),
        ("[1]", r"line 2: must be a JSON object .* is a list"),
        ('{"txt": "a"}', r"line 2: keys must be .*'messages'.* found 'txt'"),
        ("{}", r"line 2: keys must be .* found none"),
        ('{"text": 3}', r"line 2: 'text' must be a string, is a number"),
        ('{"text": null}', r"line 2: 'text' must be a string, is missing or null"),
        ('{"messages": []}', r"line 2: 'messages' must be a list with at least one"),
        ('{"messages": ["hi"]}', r"line 2: 'messages\[0\]' must be an object with a 'role'"),
        ('{"messages": [{"role": "user"}]}', r"line 2: 'messages\[0\].content' must be a string"),
        ('{"prompt": "a", "completion": 1}', r"line 2: 'completion' must be a string"),
    ],
)
def test_a_bad_line_is_named_by_file_line_and_key(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "train.jsonl").write_text(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(DataError, match=message):
        check_data(tmp_path)


def test_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        check_data(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"train.jsonl: no such file"):
        check_data(tmp_path)
    (tmp_path / "train.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"train.jsonl: no examples"):
        check_data(tmp_path)
    (tmp_path / "train.jsonl").write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(DataError, match="not UTF-8"):
        check_data(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "valid.jsonl").write_text("nope\n")
    with pytest.raises(DataError, match=r"valid.jsonl line 1"):
        check_data(tmp_path)


def test_files_may_mix_the_formats(tmp_path: Path) -> None:
    records = [{"text": "a"}, chat("q", "a"), {"prompt": "p", "completion": "c"}]
    write_jsonl(tmp_path / "train.jsonl", records)
    assert check_data(tmp_path).formats == ("text", "chat", "completions")
    assert len(load(tmp_path).train.examples) == 3


@pytest.mark.parametrize(
    "records",
    [
        [{"text": "hello"}, {"text": "wor<|im_end|>"}],
        [chat("1+1", "2"), chat("a", "b")],
        [{"prompt": "1+1", "completion": "2"}, {"prompt": "x", "completion": "y"}],
        # The first record decides, whatever else the later ones hold.
        [{"text": "hello"}, {"text": "there", **chat("q", "a")}],
    ],
    ids=["text", "chat", "completions", "first-decides"],
)
@pytest.mark.parametrize("mask", [None, False])
def test_tokens_and_offsets_are_those_of_mlx_lm(tmp_path: Path, records: list[Any], mask: bool | None) -> None:
    write_jsonl(tmp_path / "train.jsonl", records)
    has_prompt = "text" not in records[0]

    class Config:
        mask_prompt = has_prompt and mask is None

    reference = datasets.create_dataset(records, TOKENIZER, Config())
    expected = [reference.process(record) for record in records]
    found = load(tmp_path, mask_prompt=mask).train.examples
    assert [(list(example.tokens), example.start) for example in found] == [
        (tokens, max(1, offset)) for tokens, offset in expected
    ]
    assert all((example.start > 1) == (has_prompt and mask is None) for example in found)


def test_long_examples_are_cut_and_those_without_an_answer_dropped_with_counts(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [chat("1", "2"), chat("1", "2" * 60), chat("q" * 90, "2"), {"text": ""}])
    data = load(tmp_path, max_seq_length=64)
    assert (len(data.train.examples), data.train.cut, data.train.dropped) == (2, 2, 2)
    assert max(len(example.tokens) for example in data.train.examples) == 64
    assert len(data.warnings(64)) == 2
    write_jsonl(tmp_path / "train.jsonl", [chat("q" * 90, "2")])
    with pytest.raises(DataError, match="no example has a token to train on within max_seq_length=64"):
        load(tmp_path, max_seq_length=64)


def test_masking_text_and_a_template_that_refuses_are_named_by_line(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a"}])
    with pytest.raises(DataError, match=r"train.jsonl line 1: 'text' has no prompt to mask"):
        load(tmp_path, mask_prompt=True)
    write_jsonl(tmp_path / "train.jsonl", [chat("a", "b")])
    strict = byte_tokenizer()
    strict.chat_template = "{{ raise_exception('no users here') }}"
    with pytest.raises(DataError, match=r"train.jsonl line 1: .*no users here"):
        load_data(tmp_path, strict, TrainConfig(data_path=""))
    strict.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        load_data(tmp_path, strict, TrainConfig(data_path=""))


def examples(count: int, seed: int = 0, longest: int = 90) -> list[Example]:
    rng = np.random.default_rng(seed)
    return [
        Example(tuple(rng.integers(1, 99, length).tolist()), int(rng.integers(1, length)))
        for length in rng.integers(2, longest, count).tolist()
    ]


@pytest.mark.parametrize(("count", "batch_size"), [(1, 4), (3, 4), (4, 4), (9, 4), (64, 8), (65, 8)])
def test_an_epoch_holds_every_example_once_also_when_batches_do_not_come_out_even(count: int, batch_size: int) -> None:
    data = examples(count)
    order = BatchOrder(data, batch_size=batch_size, seed=1)
    for epoch in range(3):
        seen: list[tuple[int, ...]] = []
        for index in range(order.batches_per_epoch):
            batch = order[epoch * order.batches_per_epoch + index]
            for row, (start, last) in zip(batch.tokens, batch.spans, strict=True):
                assert 1 <= start <= last
                seen.append(tuple(row[: last + 1].tolist()))
        assert sorted(seen) == sorted(example.tokens for example in data)


def test_the_order_is_a_function_of_seed_and_position() -> None:
    data = examples(50)
    first = [BatchOrder(data, batch_size=4, seed=7)[position] for position in range(40)]
    order = BatchOrder(data, batch_size=4, seed=7)
    for position in (39, 0, 20):
        assert np.array_equal(order[position].tokens, first[position].tokens)
    other = BatchOrder(data, batch_size=4, seed=8)
    assert any(not np.array_equal(other[position].tokens, first[position].tokens) for position in range(5))
    epochs = [{tuple(map(tuple, order[i + e * 13].tokens.tolist())) for i in range(13)} for e in range(2)]
    assert epochs[0] != epochs[1]


def test_positions_point_at_the_inputs_whose_target_carries_loss() -> None:
    for batch in itertools.chain(
        (BatchOrder(examples(30), batch_size=4, seed=0)[i] for i in range(8)),
        sequential(examples(30), batch_size=4, limit=2),
    ):
        steps = np.arange(1, batch.tokens.shape[1])
        mask = (steps >= batch.spans[:, :1]) & (steps <= batch.spans[:, 1:])
        assert np.flatnonzero(mask).tolist() == batch.positions[: batch.loss_tokens].tolist()
        assert batch.loss_tokens > 0


def test_the_number_of_shapes_is_bounded() -> None:
    assert all(padded(length) >= length for length in range(1, 9000))
    assert len({padded(length) for length in range(1, 2049)}) <= 48
    assert all(padded(length) <= length * 1.25 + 8 for length in range(1, 9000))
    order = BatchOrder(examples(500, longest=65), batch_size=8, seed=0)
    assert len({order[i].tokens.shape for i in range(200)}) <= 9
