"""From a folder that lies still to a version that is served.

Order: look, read headers, compare with the base, copy into the store, describe the copy, load it, move the pointer.
What changes meanwhile is taken again; what is wrong is quarantined with a reason and left where it is.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from optiq_core.adapters.format import read_manifest
from optiq_core.errors import AdapterError, OptiqError
from optiq_core.files import recover_folders, staged_folder
from optiq_daemon.base_info import BaseInfo
from optiq_daemon.blobs import copy_file
from optiq_daemon.errors import ConflictError, InvalidRequestError, QuotaError, RefusedError, UnavailableError
from optiq_daemon.names import AdapterKey
from optiq_daemon.records import AdapterRecord, Description, Quarantine
from optiq_daemon.registry import Registry
from optiq_daemon.slots import Lease
from optiq_daemon.snapshot import Snapshot, take_snapshot
from optiq_daemon.states import AdapterState
from optiq_daemon.tasks import Tasks
from optiq_daemon.version_catalog import BYTES_PER_PARAMETER

log = logging.getLogger(__name__)

COPIES_AT_ONCE = 4
# A new version of an adapter in use waits this long for room before the name moves to it without.
ROOM_WAIT_S = 5.0
TRASH = ".deleted-"


class _ChangedMeanwhileError(Exception):
    """The folder was written to while it was read."""


class Ingest:
    """Installs, replaces and retires adapters as their folders come and go.

    Args:
        drop: the drop folder, `<tenant>/<name>/` below it.
        again: called with a name whose folder has to settle once more.
        check_disk: raises QuotaError if a name's tenant may not have these bytes more on disk.
    """

    def __init__(
        self,
        registry: Registry,
        drop: Path,
        again: Callable[[AdapterKey], None],
        check_disk: Callable[[AdapterKey, int], None],
    ) -> None:
        self._registry = registry
        self._drop = drop
        self._again = again
        self._check_disk = check_disk
        self._locks: dict[AdapterKey, asyncio.Lock] = {}
        self._copies = asyncio.Semaphore(COPIES_AT_ONCE)
        self._waiting: set[AdapterKey] = set()
        self._started = time.time()
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
                await self._load(key, lease, record)
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
            await self._install(key, folder, snapshot, base, origin)
        except _ChangedMeanwhileError:
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

    async def _install(self, key: AdapterKey, folder: Path, snapshot: Snapshot, base: BaseInfo, origin: str) -> None:
        registry = self._registry
        async with self._copies:
            manifest = await asyncio.to_thread(read_manifest, folder)
            base.check(manifest)
            try:
                self._check_disk(key, manifest.disk_bytes)
            except QuotaError as error:
                raise AdapterError("DISK_QUOTA", error.message) from None
            staging, copied, digest = await asyncio.to_thread(registry.blobs.stage, folder, manifest)
        lease = registry.residency.lease(digest, copied.parameter_count * BYTES_PER_PARAMETER)
        try:
            if await asyncio.to_thread(take_snapshot, folder) != snapshot:
                raise _ChangedMeanwhileError
            warnings = base.check(copied)
            old = registry.find(key)
            if old is not None and origin == "folder" and self._held_back(old, digest):
                old.fingerprint, old.quarantine = snapshot.fingerprint, None
                registry.save(old)
                registry.phase(key, None)
                return
            registry.blobs.commit(staging, digest)
            if old is None or old.digest != digest or old.keep_loaded:
                await self._load(key, lease, old)
            record = AdapterRecord(
                tenant=key.tenant,
                adapter=key.adapter,
                digest=digest,
                description=Description.of(copied),
                fingerprint=snapshot.fingerprint,
                folder_digest=digest,
                base_digest=base.digest,
                source_path=str(folder),
                warnings=warnings,
            )
            if old is not None:
                record.create_time, record.last_number = old.create_time, old.last_number
                record.pinned, record.keep_alive_s = old.pinned, old.keep_alive_s
            if old is not None and old.digest == digest:
                record.drop_to_routable_ms = old.drop_to_routable_ms
                record.keep_loaded, record.warnings = old.keep_loaded, old.warnings | warnings
            else:
                since = max(snapshot.changed_at, self._started)
                record.drop_to_routable_ms = max(0.0, (time.time() - since) * 1000)
            registry.publish(record, origin)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            lease.release()

    @staticmethod
    def _held_back(record: AdapterRecord, digest: str) -> bool:
        """Whether a rollback set the folder's content aside: touching the files does not undo that."""
        return bool(record.digest) and record.digest != digest == record.folder_digest

    async def _load(self, key: AdapterKey, lease: Lease, old: AdapterRecord | None) -> None:
        """Put the new version into the engine before the name points to it.

        It takes another's room only where it replaces a version that is in use. An engine that has no room, or has
        just died, is no fault of the adapter: it is published and loaded when it is asked for.
        """
        residency = self._registry.residency
        before = residency.slot(old.digest) if old is not None else None
        if not residency.has_room(lease.digest) and not (before is not None and before.entered):
            return
        try:
            async with asyncio.timeout(ROOM_WAIT_S):
                await residency.enter(lease)
        except TimeoutError:
            log.info("%s: no room in the engine; it is loaded when it is asked for", key.name)
        except RefusedError as error:
            if error.reason in ("ADAPTER_OVER_BUDGET", "BUDGET_PINNED"):
                self._registry.events.append("adapter.load_failed", key.name, str(error))
                return
            facts = error.metadata
            found = {field: facts.get(field, "") for field in ("file", "tensor", "expected", "found")}
            raise AdapterError(error.reason, facts.get("message") or error.message, **found) from None
        except InvalidRequestError as error:
            raise AdapterError("ENGINE_REFUSED", error.message) from None
        except OptiqError as error:
            self._registry.events.append("adapter.load_failed", key.name, str(error))

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
