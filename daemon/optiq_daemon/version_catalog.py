"""What residency asks about versions, and what happens to them when they are loaded or nobody holds them any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from optiq_daemon.blobs import Blobs
from optiq_daemon.names import AdapterKey
from optiq_daemon.prober import Prober
from optiq_daemon.records import AdapterRecord
from optiq_daemon.residency import Residency
from optiq_daemon.tasks import Tasks
from optiq_daemon.versions import History

DEFAULT_KEEP_VERSIONS = 5
# Bytes per parameter of the widest type that a bank computes in.
BYTES_PER_PARAMETER = 4


class Retention(NamedTuple):
    """What stays.

    Attributes:
        keep_versions: per name in the store, the served one included.
        keep_alive_s: seconds that an unused version stays in the engine; 0 for no limit.
        keep_version_s: seconds that a version stays in the store after another took its place; 0 for no limit.
    """

    keep_versions: int = DEFAULT_KEEP_VERSIONS
    keep_alive_s: float = 0.0
    keep_version_s: float = 0.0


class VersionCatalog:
    """Residency's :class:`optiq_daemon.mounting.Catalog`; lives on the event loop.

    Args:
        records: of all names.
        touched: called with a name whose state may be another than before.
        probed: called with a loaded version and a warning, empty if all is well.
    """

    def __init__(
        self,
        records: Mapping[AdapterKey, AdapterRecord],
        history: History,
        blobs: Blobs,
        retention: Retention,
        *,
        touched: Callable[[AdapterKey], None],
        probed: Callable[[str, str], None],
    ) -> None:
        self._records = records
        self._history = history
        self._blobs = blobs
        self._retention = retention
        self._touched = touched
        self._tasks = Tasks()
        self.prober = Prober(probed)
        self.residency = Residency(self)

    async def close(self) -> None:
        """End what is under way."""
        await self.prober.close()
        await self.residency.close()
        await self._tasks.cancel()

    def path(self, digest: str) -> Path:
        """Folder of a version in the store."""
        return self._blobs.path(digest)

    def size(self, digest: str) -> int:
        """Bytes that a version takes in the engine at most; 0 for one that is not published yet."""
        version = self._history.any_of(digest)
        if version is None or version.description is None:
            return 0
        return version.description.parameter_count * BYTES_PER_PARAMETER

    def pinned(self, digest: str) -> bool:
        """Whether a pinned name points to a version."""
        return any(record.pinned for record in self.named(digest))

    def keep_alive_s(self, digest: str) -> float:
        """The longest keep-alive of the names that point to a version; 0 for no limit."""
        seconds = [record.keep_alive_s for record in self.named(digest)]
        values = [self._retention.keep_alive_s if value is None else value for value in seconds]
        return 0.0 if not values or 0.0 in values else max(values)

    def changed(self, digest: str) -> None:
        """The state of the names that point to a version may be another."""
        for record in self.named(digest):
            self._touched(record.key)

    def loaded(self, digest: str) -> None:
        """A version is in the engine: see whether it does anything there."""
        self.prober.add(digest)

    def freed(self, digest: str) -> None:
        """Nobody holds a version: remove its bytes, unless a name keeps them in its history."""
        if not self._history.keeps(digest):
            self.prober.forget(digest)
            self._blobs.detach(digest)
            self._tasks.start(asyncio.to_thread(self._blobs.sweep), "sweep blobs")

    def free_unused(self, digests: Iterable[str]) -> None:
        """Names have let these versions go."""
        for digest in digests:
            # One that is still leased, or in the engine, is freed when it has left.
            if self.residency.slot(digest) is None:
                self.freed(digest)

    def named(self, digest: str) -> list[AdapterRecord]:
        """Records of the names that point to a version, in order."""
        slot = self.residency.slot(digest)
        return [self._records[key] for key in sorted(slot.names if slot else ()) if key in self._records]
