"""From an adapter's folder to a version that a name points to.

Order: read headers, compare with the base, copy into the store, describe the copy, load it, move the pointer.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from optiq_core.adapters.format import read_manifest
from optiq_core.errors import AdapterError, OptiqError
from optiq_daemon.base_info import BaseInfo
from optiq_daemon.copy_pace import CopyPace
from optiq_daemon.errors import InvalidRequestError, QuotaError, RefusedError
from optiq_daemon.names import AdapterKey
from optiq_daemon.records import AdapterRecord, Description
from optiq_daemon.registry import Registry
from optiq_daemon.slots import Lease
from optiq_daemon.snapshot import Snapshot, take_snapshot
from optiq_daemon.version_catalog import BYTES_PER_PARAMETER

log = logging.getLogger(__name__)

# A new version of an adapter in use waits this long for room before the name moves to it without.
ROOM_WAIT_S = 5.0


class ChangedMeanwhileError(Exception):
    """The folder was written to while it was read."""


class Installer:
    """Publishes what a folder holds; lives on the event loop.

    Args:
        check_disk: raises QuotaError if a name's tenant may not have these bytes more on disk.
        busy: whether requests run now.
    """

    def __init__(
        self, registry: Registry, check_disk: Callable[[AdapterKey, int], None], busy: Callable[[], bool]
    ) -> None:
        self._registry = registry
        self._check_disk = check_disk
        self._pace = CopyPace(busy)
        self._started = time.time()

    async def install(self, key: AdapterKey, folder: Path, snapshot: Snapshot, base: BaseInfo, origin: str) -> None:
        """Copy a folder, check the copy, load it, and publish it.

        Args:
            snapshot: the folder as it was when it was decided on.
            origin: how the version came, for the history.

        Raises:
            AdapterError: it cannot be served.
            ChangedMeanwhileError: it is not what the snapshot shows any more.
            OSError: it cannot be read, or the disk is full.
        """
        registry = self._registry
        async with self._pace.turn():
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
                raise ChangedMeanwhileError
            warnings = base.check(copied)
            old = registry.find(key)
            if old is not None and origin == "folder" and self._held_back(old, digest):
                old.fingerprint, old.quarantine = snapshot.fingerprint, None
                registry.save(old)
                registry.phase(key, None)
                return
            registry.blobs.commit(staging, digest)
            if old is None or old.digest != digest or old.keep_loaded:
                await self.load(key, lease, old)
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

    async def load(self, key: AdapterKey, lease: Lease, old: AdapterRecord | None) -> None:
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

    @staticmethod
    def _held_back(record: AdapterRecord, digest: str) -> bool:
        """Whether a rollback set the folder's content aside: touching the files does not undo that."""
        return bool(record.digest) and record.digest != digest == record.folder_digest
