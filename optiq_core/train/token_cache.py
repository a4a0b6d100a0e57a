"""Tokens of training data that were made before, by the same tokenizer from the same records."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from optiq_core.files import write_atomically
from optiq_core.train.data import Example, encode
from optiq_core.train.records import Record

# Files that are kept; the longest unused go first.
_KEPT = 32
# A template that asks for the date gives other tokens tomorrow.
_CLOCK = "strftime_now"


class TokenCache:
    """Keeps uncut examples, one file for each set of records.

    Args:
        folder: where; made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def examples(
        self, records: Sequence[Record], tokenizer: Any, *, mask_prompt: bool | None, file: str
    ) -> list[Example]:
        """The records' examples, uncut: from the cache, or made and put there.

        Raises:
            DataError: naming file, line and key.
        """
        key = _key(records, tokenizer, mask_prompt)
        path = self._folder / f"{key}.npz"
        found = _read(path) if key else None
        if found is not None:
            return found
        made = [example for _, example in encode(records, tokenizer, mask_prompt=mask_prompt, file=file)]
        if key and made:
            self._write(path, made)
        return made

    def _write(self, path: Path, examples: Sequence[Example]) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, _packed(examples))
            files = sorted(self._folder.glob("*.npz"), key=lambda other: -other.stat().st_mtime)
            for old in files[_KEPT:]:
                old.unlink(missing_ok=True)
        except OSError:
            # A full disk or a read-only home: the next run tokenizes again.
            return


def _key(records: Iterable[Record], tokenizer: Any, mask_prompt: bool | None) -> str:
    """Digest of all that the tokens depend on; empty where that cannot be told."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    template = str(getattr(tokenizer, "chat_template", None))
    if backend is None or getattr(tokenizer, "_chat_template", None) is not None or _CLOCK in template:
        return ""
    about = [version("mlx-lm"), version("transformers"), template, str(tokenizer.special_tokens_map), str(mask_prompt)]
    hasher = hashlib.sha256(msgspec.json.encode(about))
    hasher.update(backend.to_str().encode())
    for record in records:
        hasher.update(msgspec.json.encode([record.line, record.format, record.value]))
    return hasher.hexdigest()


def _packed(examples: Sequence[Example]) -> bytes:
    answers = [answer for example in examples for answer in (example, example.rejected) if answer is not None]
    file = io.BytesIO()
    np.savez_compressed(
        file,
        tokens=np.array([token for answer in answers for token in answer.tokens], np.int32),
        lengths=np.array([len(answer.tokens) for answer in answers], np.int64),
        starts=np.array([answer.start for answer in answers], np.int64),
        lines=np.array([answer.line for answer in answers], np.int64),
        pairs=np.array(examples[0].rejected is not None),
    )
    return file.getvalue()


def _read(path: Path) -> list[Example] | None:
    """Examples of a cache file; None if there is none, or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as found:
            ends = np.cumsum(found["lengths"]).tolist()
            flat, starts, lines = (found[name].tolist() for name in ("tokens", "starts", "lines"))
            pairs = bool(found["pairs"])
        path.touch()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    begins = [0, *ends]
    answers = [
        Example(tuple(flat[begin:end]), start, line)
        for begin, end, start, line in zip(begins, ends, starts, lines, strict=False)
    ]
    if not pairs:
        return answers
    return [
        Example(chosen.tokens, chosen.start, chosen.line, rejected)
        for chosen, rejected in zip(answers[::2], answers[1::2], strict=True)
    ]
