"""Measurements that outlive the process that made them, so that an interrupted sensitivity pass goes on.

A file in the cache holds ``{"path|option": nats}`` for one model, one calibration text and one way of measuring. The
key covers the content of the weight files: two fine-tunes of one model have the same shapes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from optiq_core.base.metadata import weight_files
from optiq_core.base.paths import cache_path
from optiq_core.files import write_atomically


def content_digest(folder: Path) -> str:
    """Hex SHA-256 over the content of a model folder's configuration and weight files."""
    hasher = hashlib.sha256()
    for file in (folder / "config.json", *weight_files(folder)):
        with file.open("rb") as handle:
            hasher.update(hashlib.file_digest(handle, "sha256").digest())
    return hasher.hexdigest()


class PartialResults:
    """What has been measured so far; every addition is on disk when :meth:`add` returns.

    Args:
        key: everything that a result depends on besides the module and its option.
    """

    def __init__(self, *key: str) -> None:
        name = hashlib.sha256("\n".join(key).encode()).hexdigest()[:24]
        self.file = cache_path() / "sensitivity" / f"{name}.json"
        self._results: dict[str, float] = {}
        if self.file.exists():
            try:
                read = json.loads(self.file.read_text(encoding="utf-8"))
                self._results = {str(k): float(v) for k, v in read.items()}
            except (OSError, ValueError, AttributeError):
                # Cut short by a crash of the machine: measured again.
                self._results = {}

    def get(self, path: str, option: str) -> float | None:
        """Return a result, or None if it is yet to be measured."""
        return self._results.get(f"{path}|{option}")

    def add(self, results: Mapping[str, Mapping[str, float]]) -> None:
        """Keep results, by module path and option."""
        self._results.update({f"{path}|{option}": v for path, own in results.items() for option, v in own.items()})
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.file, json.dumps(self._results).encode())
