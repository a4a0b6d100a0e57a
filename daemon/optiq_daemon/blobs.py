"""Adapter versions on disk, named by their digest.

A version is copied to a staging folder, flushed, and renamed into place, so that a name in the store is always whole.
:meth:`Blobs.commit` and :meth:`Blobs.detach` are single renames made on the event loop: nothing comes between the
decision and the act. The slow halves (copying, removing) run in threads on folders that nobody else knows.
"""

from __future__ import annotations

import os
import shutil
import stat
import uuid
from collections.abc import Iterable
from pathlib import Path

from optiq_core.adapters.format import AdapterManifest, digest_folder, read_manifest
from optiq_core.errors import AdapterError

CHUNK = 1 << 20


class Blobs:
    """The store below `root`: `adapters/<digest>/` and `staging/`."""

    def __init__(self, root: Path) -> None:
        self._versions = root / "adapters"
        self._staging = root / "staging"
        self._versions.mkdir(parents=True, exist_ok=True)
        self._staging.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Folder of a version, whether or not it is there."""
        return self._versions / digest

    def has(self, digest: str) -> bool:
        """Whether the version is on disk."""
        return bool(digest) and self.path(digest).is_dir()

    def stage(self, source: Path, manifest: AdapterManifest) -> tuple[Path, AdapterManifest, str]:
        """Copy an adapter's files and describe the copy; for a thread.

        Returns:
            Staging folder, its manifest, its digest. The copy is what counts: the source may change at any moment.

        Raises:
            AdapterError: the copy is no adapter, or a file turned into something else.
            OSError: the source cannot be read, or the disk is full.
        """
        staging = self._staging / uuid.uuid4().hex
        staging.mkdir()
        try:
            for name in manifest.files:
                copy_file(source / name, staging / name)
            _flush(staging)
            copied = read_manifest(staging)
            return staging, copied, digest_folder(staging, copied)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise

    def commit(self, staging: Path, digest: str) -> Path:
        """Give a staged folder its name; a version that is there already wins, and the caller removes the copy."""
        target = self.path(digest)
        if not target.is_dir():
            staging.rename(target)
        return target

    def detach(self, digest: str) -> None:
        """Take a version out of the store; :meth:`sweep` frees its bytes."""
        if self.has(digest):
            self.path(digest).rename(self._trash())

    def scratch(self) -> Path:
        """A new empty folder on the store's file system, for who removes it again; a crash's are removed at start."""
        folder = self._staging / f"scratch-{uuid.uuid4().hex}"
        folder.mkdir()
        return folder

    def sweep(self) -> None:
        """Remove what was detached; for a thread."""
        for folder in self._staging.glob("trash-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def reconcile(self, named: Iterable[str]) -> list[str]:
        """At start: remove unfinished copies and versions that nothing names; returns the latter's digests."""
        for folder in self._staging.iterdir():
            shutil.rmtree(folder, ignore_errors=True)
        kept = set(named)
        orphans = [entry.name for entry in self._versions.iterdir() if entry.name not in kept]
        for digest in orphans:
            shutil.rmtree(self.path(digest), ignore_errors=True)
        return orphans

    def _trash(self) -> Path:
        return self._staging / f"trash-{uuid.uuid4().hex}"


def copy_file(source: Path, target: Path) -> None:
    """Copy one regular file's bytes and flush them; a link is refused even if it took the file's place just now."""
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise AdapterError("FILE_MISSING", "the file vanished while it was read", file=source.name) from None
    except OSError as error:
        raise AdapterError("FILE_UNREADABLE", f"cannot be read: {error.strerror}", file=source.name) from None
    with os.fdopen(descriptor, "rb") as reading:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise AdapterError("NOT_A_FILE", "is not a regular file", file=source.name, expected="a regular file")
        with target.open("wb") as writing:
            shutil.copyfileobj(reading, writing, CHUNK)
            writing.flush()
            os.fsync(writing.fileno())


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
