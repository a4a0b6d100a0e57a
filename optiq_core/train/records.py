"""Reads training files: which records there are and whether they are well formed. No MLX, no tokenizer.

The formats are mlx-lm's: ``prompt`` + ``completion``, ``messages`` (with optional ``tools``), ``text``; and for
preferences ``prompt`` + ``chosen`` + ``rejected``, each text or a list of messages. The
first record of a file sets its format, with that precedence. A later record that lacks the first one's
keys may be of another of the three formats (mlx-lm would stop there with a KeyError).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from optiq_core.errors import DataError

RecordFormat = Literal["completions", "chat", "text", "preference"]

# Of a dataset on the hub: owner and name. Anything else is a path.
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
TRAIN_FILE = "train.jsonl"
VALID_FILE = "valid.jsonl"

_KEYS: dict[RecordFormat, tuple[str, ...]] = {
    "completions": ("prompt", "completion"),
    "chat": ("messages",),
    "text": ("text",),
    "preference": ("prompt", "chosen", "rejected"),
}
_EXPECTED = "'messages', 'prompt' and 'completion', 'text', or 'prompt', 'chosen' and 'rejected'"


@dataclass(frozen=True)
class Record:
    """One line of a training file; ``line`` counts from 1."""

    line: int
    format: RecordFormat
    value: dict[str, Any]


@dataclass(frozen=True)
class DataSummary:
    """What ``check_data`` found: records per file, and the formats used."""

    train: int
    valid: int
    formats: tuple[RecordFormat, ...]


def check_data(source: str | Path) -> DataSummary:
    """Check training data without tokenizing it.

    Raises:
        DataError: naming file, line and key.
    """
    train, valid = read_source(source)
    formats = dict.fromkeys(record.format for record in (*train, *valid))
    return DataSummary(train=len(train), valid=len(valid), formats=tuple(formats))


def read_source(source: str | Path) -> tuple[list[Record], list[Record]]:
    """The records to train on (at least one) and to validate on, of a folder, a file, or a hub dataset.

    Raises:
        DataError: naming file, line and key.
    """
    path = Path(source)
    if path.is_file():
        records = read_records(path)
        if not records:
            raise DataError(f"{path}: no examples; one JSON object per line with {_EXPECTED}")
        return records, []
    if not path.exists() and HUB_ID.fullmatch(str(source)):
        from optiq_core.train.hub import read_hub

        return read_hub(str(source))
    return read_folder(path)


def read_folder(folder: Path) -> tuple[list[Record], list[Record]]:
    """The records of ``train.jsonl`` (at least one) and of ``valid.jsonl`` (none if there is no file)."""
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; data is a folder with {TRAIN_FILE} and optionally {VALID_FILE}, one such file, "
            "or the id of a hub dataset"
        )
    train_path, valid_path = folder / TRAIN_FILE, folder / VALID_FILE
    if not train_path.is_file():
        raise DataError(f"{train_path}: no such file; one JSON object per line with {_EXPECTED}")
    train = read_records(train_path)
    if not train:
        raise DataError(f"{train_path}: no examples; one JSON object per line with {_EXPECTED}")
    return train, read_records(valid_path) if valid_path.is_file() else []


def read_records(path: Path) -> list[Record]:
    """Every record of one JSONL file, in order; blank lines are skipped."""
    records: list[Record] = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    first = records[0].format if records else None
                    records.append(_parse(line, number, path.name, first))
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} line {len(records) + 1}: not UTF-8 ({error.reason})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return records


def _parse(line: str, number: int, file: str, first: RecordFormat | None) -> Record:
    """One line as a record."""
    where = f"{file} line {number}"
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    return parse_record(value, number, where, first)


def parse_record(value: object, number: int, where: str, first: RecordFormat | None) -> Record:
    """A record from its values.

    Args:
        value: what was read.
        number: of the line or row, from 1.
        where: how messages name it.
        first: the format of the first record beside it.

    Raises:
        DataError: it is of no format.
    """
    if not isinstance(value, dict):
        raise DataError(f"{where}: must be a JSON object with {_EXPECTED}, is {_type_name(value)}")
    candidates: list[RecordFormat] = [*([first] if first else []), "completions", "chat", "text", "preference"]
    for name in candidates:
        if all(key in value for key in _KEYS[name]):
            _check_values(value, name, where)
            return Record(line=number, format=name, value=value)
    keys = ", ".join(repr(key) for key in sorted(value)) or "none"
    raise DataError(f"{where}: keys must be {_EXPECTED}; found {keys}")


def _check_values(value: dict[str, Any], name: RecordFormat, where: str) -> None:
    if name == "preference":
        for key in _KEYS[name]:
            if isinstance(value[key], list):
                _check_messages(value[key], key, where)
            elif not isinstance(value[key], str):
                raise DataError(f"{where}: '{key}' must be a string or messages, is {_type_name(value[key])}")
        return
    if name != "chat":
        for key in _KEYS[name]:
            if not isinstance(value[key], str):
                raise DataError(f"{where}: '{key}' must be a string, is {_type_name(value[key])}")
        return
    _check_messages(value["messages"], "messages", where)
    if not isinstance(value.get("tools") or [], list):
        raise DataError(f"{where}: 'tools' must be a list of tool descriptions, is {_type_name(value['tools'])}")


def _check_messages(messages: Any, key: str, where: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: '{key}' must be a list with at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DataError(f"{where}: '{key}[{index}]' must be an object with a 'role'")
        content = message.get("content")
        if not (isinstance(content, (str, list)) or (content is None and "tool_calls" in message)):
            raise DataError(f"{where}: '{key}[{index}].content' must be a string, is {_type_name(content)}")


def _type_name(value: object) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true or false",
        type(None): "missing or null",
    }
    return names.get(type(value), "a number")
