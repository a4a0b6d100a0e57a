"""Training data from the Hugging Face hub, through its own library. No MLX here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from optiq_core.errors import DataError
from optiq_core.train.records import Record, parse_record

# Names that the splits to train and to validate on go by.
_TRAIN, _VALID = ("train",), ("valid", "validation", "val", "dev")


def read_hub(dataset_id: str) -> tuple[list[Record], list[Record]]:
    """The records of a hub dataset.

    Raises:
        DataError: ``datasets`` is not installed, the dataset cannot be had, or a row is of no format that we train on.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(
            f"{dataset_id}: no such path; for a dataset of this name on the hub: pip install 'optiq[hub]'"
        ) from error
    try:
        splits = load_dataset(dataset_id)
    except Exception as error:  # the library raises whatever its network, files and scripts raise
        raise DataError(f"{dataset_id}: cannot be loaded from the hub ({error})") from error
    return read_splits(dataset_id, splits)


def read_splits(dataset_id: str, splits: Mapping[str, Iterable[Any]]) -> tuple[list[Record], list[Record]]:
    """The records of a dataset's splits: rows are dictionaries with the keys that lines of files have.

    Raises:
        DataError: there is nothing to train on, or a row is of no known format.
    """
    found = [
        _records(dataset_id, name, splits[name]) if (name := next((n for n in names if n in splits), "")) else []
        for names in (_TRAIN, _VALID)
    ]
    if not found[0]:
        raise DataError(f"{dataset_id}: no examples in a split named train; there are {', '.join(splits) or 'none'}")
    return found[0], found[1]


def _records(dataset_id: str, split: str, rows: Iterable[Any]) -> list[Record]:
    records: list[Record] = []
    for number, row in enumerate(rows, start=1):
        # Tables have every column in every row: what a row does not have is null there.
        present = {key: value for key, value in row.items() if value is not None}
        first = records[0].format if records else None
        records.append(parse_record(present, number, f"{dataset_id} {split} row {number}", first))
    return records
