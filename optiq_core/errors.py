"""Errors of the core, all derived from :class:`OptiqError`.

::

    OptiqError
    ├── BaseModelError      a base that cannot be loaded
    ├── AdapterError        an adapter folder that cannot be served
    ├── DataError           training data that cannot be read
    ├── QuantizationError   bits that cannot be measured or allocated
    ├── PlanError           a plan that cannot be made
    ├── KVConfigError       KV caches that the model cannot have
    └── TrainingError       a run that cannot start or go on

Messages name the file and the field and say what would be right. They never hold prompt text.
"""

from __future__ import annotations

MAX_SHOWN = 400


def printable(text: str) -> str:
    """Text as it can be shown: control characters escaped, and not endless."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:MAX_SHOWN])
    return shown if len(text) <= MAX_SHOWN else shown + "..."


class OptiqError(Exception):
    """Base class of every error that Optiq raises on purpose."""


class BaseModelError(OptiqError):
    """A base that does not exist, is damaged, or that MLX cannot load."""


class AdapterError(OptiqError):
    """An adapter folder that cannot be served.

    Args:
        code: stable, upper snake case, for example ``SHAPE_MISMATCH``.
        message: one sentence for a person.
        file: name inside the folder.
        tensor: tensor or configuration field.
        expected: what would be right.
        found: what is there.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        file: str = "",
        tensor: str = "",
        expected: str = "",
        found: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        # Parts of these come out of files that nobody vouches for, and go to logs and terminals.
        self.message = printable(message)
        self.file = printable(file)
        self.tensor = printable(tensor)
        self.expected = printable(expected)
        self.found = printable(found)

    def __str__(self) -> str:
        where = " ".join(p for p in (self.file, self.tensor) if p)
        detail = f" (expected {self.expected}, found {self.found})" if self.expected or self.found else ""
        return f"{self.code}: {where + ': ' if where else ''}{self.message}{detail}"


class DataError(OptiqError):
    """Training data that cannot be read; the message names file and line."""


class QuantizationError(OptiqError):
    """A conversion, a calibration text or an evaluation that cannot be used as asked."""


class PlanError(OptiqError):
    """A plan that cannot be made: an unknown device, or a damaged record of calibrations."""


class TrainingError(OptiqError):
    """A training run that cannot start or go on.

    Args:
        message: one sentence for a person.
        field: the configuration field that is wrong, where one is.
    """

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class KVConfigError(OptiqError):
    """A KV cache that does not exist or that the model's layers cannot have."""
