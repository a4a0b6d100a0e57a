"""What residency needs of others: an engine to move versions into, and a catalog that knows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

# Digest, when it began (seconds since the epoch), seconds that it took.
OnLoad = Callable[[str, float, float], None]


class Engine(Protocol):
    """What residency needs of an engine process."""

    async def load(self, digest: str, path: Path) -> int:
        """Put a version into the engine; returns its bytes there."""

    async def unload(self, digest: str) -> None:
        """Take it out; RefusedError while rows use it."""


class Catalog(Protocol):
    """What residency needs to know of versions, and whom it tells."""

    def path(self, digest: str) -> Path:
        """Folder of a version in the store."""

    def size(self, digest: str) -> int:
        """Bytes that it takes in the engine at most."""

    def pinned(self, digest: str) -> bool:
        """Whether it never makes room for others."""

    def keep_alive_s(self, digest: str) -> float:
        """Seconds without use after which it leaves the engine; 0 for no limit."""

    def changed(self, digest: str) -> None:
        """Its slot changed."""

    def loaded(self, digest: str) -> None:
        """It is in the engine now."""

    def freed(self, digest: str) -> None:
        """Neither a name nor a lease holds it any more, and it has left the engine."""
