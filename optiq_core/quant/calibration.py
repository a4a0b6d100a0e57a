"""Texts to measure on: one ships with the package for calibration, another one, disjoint, for evaluation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from optiq_core.errors import QuantizationError

_TEXTS = Path(str(resources.files("optiq_core.quant"))) / "texts"
CALIBRATION = _TEXTS / "calibration.txt"
EVALUATION = _TEXTS / "evaluation.txt"
FACTS = _TEXTS / "facts.jsonl"
SEQUENCE_LENGTH = 128


@dataclass(frozen=True)
class TokenText:
    """A text cut into sequences of equal length.

    Attributes:
        name: the file's name.
        tokens: [sequences, length], int32.
        digest: hex SHA-256 over the tokens, which is what results depend on.
    """

    name: str
    tokens: mx.array
    digest: str

    @property
    def size(self) -> int:
        """Number of tokens."""
        return int(self.tokens.size)

    def batches(self, sequences: int) -> list[mx.array]:
        """Arrays [at most ``sequences``, length]."""
        return [self.tokens[i : i + sequences] for i in range(0, self.tokens.shape[0], sequences)]


def read_tokens(
    tokenizer: Any, file: Path | None = None, *, most: int | None = None, length: int = SEQUENCE_LENGTH
) -> TokenText:
    """Tokenize a text and cut it into sequences.

    Args:
        tokenizer: mlx-lm's wrapper.
        file: UTF-8 text; the calibration text of the package if absent.
        most: tokens to use at most; sequences are then taken at even distances over the whole text.
        length: tokens of a sequence; a text that is shorter makes one shorter sequence.

    Raises:
        QuantizationError: the file cannot be read or holds hardly any text.
    """
    file = file or CALIBRATION
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise QuantizationError(f"{file}: cannot be read as UTF-8 text: {error}") from error
    ids = np.array(tokenizer.encode(text), np.int32)
    length = min(length, ids.size)
    if length < 16:
        raise QuantizationError(f"{file}: {ids.size} tokens are too few to measure on; at least 16 are needed")
    rows = ids[: ids.size // length * length].reshape(-1, length)
    if most is not None and most < rows.size:
        count = max(1, most // length)
        rows = rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]
    return TokenText(file.name, mx.array(rows), hashlib.sha256(rows.tobytes()).hexdigest())
