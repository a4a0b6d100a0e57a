"""From a folder that lies still to a version that is served.

One name is worked on by one task at a time. :mod:`optiq_daemon.installer` does the work on a folder that lies still;
what changed meanwhile is taken again, what is wrong is quarantined with a reason and left where it is.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from optiq_core.adapters.format import read_manifest
from optiq_core.errors import AdapterError, OptiqError
from optiq_core.files import recover_folders, staged_folder
from optiq_daemon.base_info import BaseInfo
from optiq_daemon.blobs import copy_file
from optiq_daemon.errors import ConflictError, RefusedError, UnavailableError
from optiq_daemon.installer import ChangedMeanwhileError, Installer
from optiq_daemon.names import AdapterKey
from optiq_daemon.records import AdapterRecord, Quarantine
from optiq_daemon.registry import Registry
from optiq_daemon.snapshot import Snapshot, take_snapshot
from optiq_daemon.states import AdapterState
from optiq_daemon.tasks import Tasks

log = logging.getLogger(__name__)

TRASH = ".deleted-"


class Ingest:
    """Installs, replaces and retires adapters as their folders come and go.

    Args:
        drop: the drop folder, `<tenant>/<name>/` below it.
        again: called with a name whose folder has to settle once more.
        check_disk: raises QuotaError if a name's tenant may not have these bytes more on disk.
        busy: whether requests run now; copying goes slowly then.
    """

    def __init__(
        self,
        registry: Registry,
        drop: Path,
        again: Callable[[AdapterKey], None],
        check_disk: Callable[[AdapterKey, int], None],
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self._registry = registry
        self._drop = drop
        self._again = again
        self._check_disk = check_disk
        self._locks: dict[AdapterKey, asyncio.Lock] = {}
        self._waiting: set[AdapterKey] = set()
        self._installer = Installer(registry, check_disk, busy)
        self._tasks = Tasks()

    def folder(self, key: AdapterKey) -> Path:
        """A name's folder in the drop folder."""
        return self._drop / key.tenant / key.adapter

    def discovered(self, key: AdapterKey) -> None:
        """A folder is being written, unless it is being removed."""
        folder = self.folder(key)
        if self._registry.find(key) is None and (folder.is_dir() or folder.is_symlink()):
            self._registry.phase(key, AdapterState.DISCOVERED)

    def settled(self, key: AdapterKey) -> None:
        """A folder lies still, or is gone: look at it in the background."""
        self._tasks.start(self._take(key), f"ingest {key.name}")

    def base_known(self) -> None:
        """Take the folders that had to wait for the engine."""
        waiting, self._waiting = self._waiting, set()
        for key in waiting:
            self.settled(key)

    async def close(self) -> None:
        """End what is under way; it is taken up again at the next start."""
        await self._tasks.cancel()

    async def install(self, key: AdapterKey, source: Path, origin: str = "import") -> AdapterRecord:
        """Copy an adapter's files from anywhere into the drop folder and serve them.

        Args:
            origin: how the version came, for the history.

        Raises:
            AdapterError: not an adapter of this base; nothing was changed.
            UnavailableError: the base is not known yet.
        """
        # A caller that goes away must not leave the folder half replaced and the lock free.
        work = self._tasks.start(
            self._import(key, source, origin), f"import {key.name}", expected=(OptiqError, OSError)
        )
        return await asyncio.shield(work)

    async def roll_back(self, key: AdapterKey, version: str, etag: str = "") -> AdapterRecord:
        """Point a name to a kept version. The folder stays as it is; only another content of it is published again.

        Args:
            version: as :meth:`History.resolve` takes it.

        Raises:
            NotFoundError: there is no such name or version.
            ConflictError: the etag is not the record's.
            AdapterError: the version does not fit the base.
            UnavailableError: the base is not known yet.
        """
        work = self._tasks.start(
            self._roll_back(key, version, etag), f"roll back {key.name}", expected=(OptiqError, OSError)
        )
        return await asyncio.shield(work)

    async def _roll_back(self, key: AdapterKey, text: str, etag: str) -> AdapterRecord:
        registry = self._registry
        async with self._lock(key):
            record = registry.record(key)
            self.check_etag(key, etag)
            version = registry.history.resolve(record, text)
            if version.digest == record.digest:
                return record
            if registry.base is None:
                raise UnavailableError("the engine is still loading the base", reason="ENGINE_NOT_SERVING")
            manifest = await asyncio.to_thread(read_manifest, registry.blobs.path(version.digest))
            warnings = registry.base.check(manifest)
            with registry.residency.lease(version.digest) as lease:
                await self._installer.load(key, lease, record)
                registry.roll_back(record, version, warnings)
            return record

    async def _import(self, key: AdapterKey, source: Path, origin: str) -> AdapterRecord:
        async with self._lock(key):
            base = self._registry.base
            if base is None:
                raise UnavailableError("the engine is still loading the base", reason="ENGINE_NOT_SERVING")
            manifest = await asyncio.to_thread(read_manifest, source)
            base.check(manifest)
            self._check_disk(key, manifest.disk_bytes)
            await asyncio.to_thread(_place, source, self.folder(key), manifest.files)
            await self._take_locked(key, origin)
            record = self._registry.record(key)
            if record.quarantine is not None:
                reason = record.quarantine
                raise AdapterError(
                    reason.code,
                    reason.message,
                    file=reason.file,
                    tensor=reason.tensor,
                    expected=reason.expected,
                    found=reason.found,
                )
            return record

    async def remove(self, key: AdapterKey, etag: str = "") -> None:
        """Retire a name and remove its folder.

        Raises:
            NotFoundError: there is no such name.
            ConflictError: the etag is not the record's.
        """
        self._registry.record(key)
        work = self._tasks.start(self._remove(key, etag), f"remove {key.name}", expected=(OptiqError, OSError))
        await asyncio.shield(work)

    def tidy(self) -> None:
        """Finish removals and replacements that a crash cut short; for a thread, at start."""
        for trash in self._drop.glob(f"*/.*{TRASH}*"):
            shutil.rmtree(trash, ignore_errors=True)
        for tenant in self._drop.iterdir() if self._drop.is_dir() else ():
            for folder in recover_folders(tenant):
                log.warning("%s: its replacement was cut short; the old content is back", folder)

    async def _remove(self, key: AdapterKey, etag: str) -> None:
        async with self._lock(key):
            self._registry.record(key)
            self.check_etag(key, etag)
            trash = self._drop / key.tenant / f".{key.adapter}{TRASH}{uuid.uuid4().hex[:8]}"
            try:
                self.folder(key).rename(trash)
            except FileNotFoundError:
                pass
            except OSError as error:
                raise RefusedError(
                    f"{self.folder(key)} cannot be removed: {error.strerror}", reason="FOLDER_NOT_REMOVABLE"
                ) from None
            self._registry.retire(key)
        if trash.is_symlink():
            trash.unlink()
        else:
            await asyncio.to_thread(shutil.rmtree, trash, ignore_errors=True)

    def check_etag(self, key: AdapterKey, etag: str) -> None:
        """Refuse a change that was decided on an older state of the name; an empty etag passes.

        Raises:
            ConflictError: the etag is not the record's.
        """
        if etag and etag != self._registry.etag(key):
            raise ConflictError("adapter", key.name, f"{key.name} has changed since it was read; read it again")

    def _lock(self, key: AdapterKey) -> asyncio.Lock:
        return self._locks.setdefault(key, asyncio.Lock())

    async def _take(self, key: AdapterKey) -> None:
        async with self._lock(key):
            await self._take_locked(key)

    async def _take_locked(self, key: AdapterKey, origin: str = "folder") -> None:
        registry, folder = self._registry, self.folder(key)
        base = registry.base
        snapshot: Snapshot | None = None
        try:
            snapshot = await asyncio.to_thread(take_snapshot, folder)
            if snapshot is None:
                registry.retire(key)
                return
            if base is None:
                self._waiting.add(key)
                self.discovered(key)
                return
            if origin == "folder" and self._known(key, snapshot, base):
                registry.phase(key, None)
                return
            registry.phase(key, AdapterState.VALIDATING)
            await self._installer.install(key, folder, snapshot, base, origin)
        except ChangedMeanwhileError:
            self._again(key)
        except AdapterError as error:
            await self._refuse(key, folder, snapshot, error)
        except UnavailableError:
            # Published or not: the folder is looked at again when the engine is back.
            self._waiting.add(key)
        except OSError as error:
            refusal = AdapterError("FOLDER_UNREADABLE", f"cannot be copied: {error.strerror or error}")
            await self._refuse(key, folder, snapshot, refusal)

    def _known(self, key: AdapterKey, snapshot: Snapshot, base: BaseInfo) -> bool:
        record = self._registry.find(key)
        return (
            record is not None
            and record.fingerprint == snapshot.fingerprint
            and record.base_digest == base.digest
            and (record.quarantine is not None or self._registry.blobs.has(record.digest))
        )

    async def _refuse(self, key: AdapterKey, folder: Path, before: Snapshot | None, error: AdapterError) -> None:
        """Quarantine, unless the folder was still being written, or is gone."""
        try:
            after = await asyncio.to_thread(take_snapshot, folder)
        except AdapterError as unreadable:
            after, error = before, unreadable
        else:
            if after is None:
                self._registry.retire(key)
                return
            if before is not None and after != before:
                self._again(key)
                return
        record = self._registry.find(key)
        fingerprint = after.fingerprint if after else ""
        reason = Quarantine.of(error)
        if record is not None and record.quarantine == reason and record.fingerprint == fingerprint:
            self._registry.phase(key, None)
            return
        self._registry.quarantine(key, reason, fingerprint=fingerprint, source=str(folder))


def _place(source: Path, target: Path, files: tuple[str, ...]) -> None:
    with staged_folder(target, overwrite=True) as staging:
        for name in files:
            copy_file(source / name, staging / name)
