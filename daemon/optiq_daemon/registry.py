"""The table of adapter names: which version each points to, its state, and who watches.

The drop folder is the truth about names, the store about bytes, the engine about what is loaded; this table joins them.
:mod:`optiq_daemon.ingest` fills it, :mod:`optiq_daemon.residency` loads and unloads for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from typing import NamedTuple, Protocol

import msgspec

from optiq_core.adapters.format import read_manifest
from optiq_core.errors import AdapterError, OptiqError
from optiq_daemon.adapter_watch import Watchers
from optiq_daemon.base_info import BaseInfo
from optiq_daemon.blobs import Blobs
from optiq_daemon.errors import NotFoundError, RefusedError, UnavailableError
from optiq_daemon.events import EventLog
from optiq_daemon.mounting import Engine
from optiq_daemon.names import AdapterKey
from optiq_daemon.prober import ProbingEngine
from optiq_daemon.records import AdapterRecord, AdapterTable, Quarantine
from optiq_daemon.slots import Lease, SlotState
from optiq_daemon.states import AdapterState
from optiq_daemon.store import Store
from optiq_daemon.tasks import Tasks
from optiq_daemon.version_catalog import Retention, VersionCatalog
from optiq_daemon.versions import History, VersionRecord

log = logging.getLogger(__name__)

_SLOT_STATES = {
    SlotState.ABSENT: AdapterState.AVAILABLE,
    SlotState.LOADING: AdapterState.LOADING,
    SlotState.RESIDENT: AdapterState.RESIDENT,
    SlotState.UNLOADING: AdapterState.UNLOADING,
}

PRUNE_EVERY_S = 600.0


class MountingEngine(Engine, ProbingEngine, Protocol):
    """What the registry needs of an engine process."""


class Resolved(NamedTuple):
    """What one request is served by. Release the lease when it ends; the bare base has none."""

    key: AdapterKey | None
    digest: str
    lease: Lease | None


class Registry:
    """Adapter names of all tenants; lives on the event loop."""

    def __init__(self, store: Store, events: EventLog, blobs: Blobs, retention: Retention | None = None) -> None:
        self.store = store
        self.events = events
        self.blobs = blobs
        self.retention = retention or Retention()
        self.base: BaseInfo | None = None
        self.history = History(store)
        self.watchers = Watchers()
        self._table = AdapterTable(store)
        self._records: dict[AdapterKey, AdapterRecord] = {}
        self._catalog = VersionCatalog(
            self._records, self.history, blobs, self.retention, touched=self.touched, probed=self._probed
        )
        self.residency = self._catalog.residency
        self._phases: dict[AdapterKey, AdapterState] = {}
        self._seen: dict[AdapterKey, AdapterState] = {}
        self._tasks = Tasks()

    def restore(self) -> None:
        """Read the store at start; a version whose bytes are gone is taken from its folder again."""
        self.history.load()
        for record in self._table.load():
            for version in self.history.of(record.key):
                if not self.blobs.has(version.digest):
                    self.history.drop(version)
            if record.digest and not self.blobs.has(record.digest):
                log.warning("%s: version %s is missing from the store", record.key.name, record.digest[:12])
                record.digest, record.fingerprint, record.folder_digest = "", "", ""
                self._table.save(record)
            self._records[record.key] = record
            self.residency.bind(record.key, record.digest)
            self._seen[record.key] = self.state(record.key)
        served = {record.digest for record in self._records.values() if record.digest}
        self.blobs.reconcile(served | self.history.digests())
        if self.retention.keep_version_s:
            self._tasks.start(self._keep_pruning(), "prune versions")

    async def close(self) -> None:
        """End what is under way."""
        await self._tasks.cancel()
        await self._catalog.close()

    # Reading

    def record(self, key: AdapterKey) -> AdapterRecord:
        """The record of a name.

        Raises:
            NotFoundError: there is none.
        """
        record = self._records.get(key)
        if record is None:
            raise not_found(key)
        return record

    def find(self, key: AdapterKey) -> AdapterRecord | None:
        """The record of a name, if there is one."""
        return self._records.get(key)

    def records(self, tenant: str = "") -> list[AdapterRecord]:
        """Records of a tenant (of all tenants if empty), ordered by name."""
        return [self._records[key] for key in sorted(self._records) if tenant in ("", key.tenant)]

    def state(self, key: AdapterKey) -> AdapterState:
        """Where a name is. While an older version is served, a refused folder still shows as QUARANTINED."""
        record = self._records[key]
        phase = self._phases.get(key)
        if phase is not None and not record.digest:
            return phase
        if record.quarantine is not None:
            return AdapterState.QUARANTINED
        if not record.digest:
            return phase or AdapterState.DISCOVERED
        slot = self.residency.slot(record.digest)
        if slot is None:
            return AdapterState.AVAILABLE
        if slot.leaving and slot.state is SlotState.RESIDENT:
            return AdapterState.UNLOADING
        return _SLOT_STATES[slot.state]

    def etag(self, key: AdapterKey) -> str:
        """Changes with the record and its state."""
        content = msgspec.json.encode(self._records[key]) + self.state(key).name.encode()
        return hashlib.sha256(content).hexdigest()[:16]

    def acquire(self, tenant: str, adapter: str, digest: str = "", *, prefetch: bool = True) -> Resolved:
        """Resolve a request's adapter, once, and lease its version. An empty adapter is the bare base.

        Args:
            digest: a kept version instead of the one that the name points to, as :meth:`History.resolve` takes it.
            prefetch: the version will be used in the engine.

        Raises:
            NotFoundError: no such tenant, name, or version.
            RefusedError: the name is quarantined, or not installed yet, and has no version.
        """
        if not self.store.has_tenant(tenant):
            raise NotFoundError("tenant", f"tenants/{tenant}", f"there is no tenant {tenant!r}")
        if not adapter:
            return Resolved(None, "", None)
        key = AdapterKey(tenant, adapter)
        record = self.record(key)
        if digest:
            chosen = self.history.resolve(record, digest).digest
        elif record.digest:
            chosen = record.digest
            record.keep_loaded = True
        else:
            raise not_served(record, self.state(key))
        lease = self.residency.lease(chosen)
        if prefetch:
            self.residency.prefetch(chosen)
        return Resolved(key, chosen, lease)

    # Changing: called by ingest and the services

    def phase(self, key: AdapterKey, phase: AdapterState | None) -> None:
        """Show where a folder is on its way; a name that is seen for the first time appears."""
        if phase is None:
            self._phases.pop(key, None)
        else:
            self._phases[key] = phase
            self._records.setdefault(key, AdapterRecord(tenant=key.tenant, adapter=key.adapter))
        if key in self._records:
            self.touched(key)

    def publish(self, record: AdapterRecord, origin: str = "folder") -> None:
        """Move the name's pointer to the record's digest."""
        key = record.key
        fresh = self._records.get(key)
        freed: list[str] = []
        with self.store.transaction():
            if fresh is None or fresh.digest != record.digest:
                version = self.history.point(record, origin)
                self._table.save(record)
                self.history.save(version)
                freed = self._prune(record)
                milliseconds = f"{record.drop_to_routable_ms:.1f}"
                fields = {"digest": record.digest, "version": str(version.number), "drop_to_routable_ms": milliseconds}
                self.events.append("adapter.published", key.name, f"version {record.digest[:12]} is served", fields)
            else:
                self._table.save(record)
            self._records[key] = record
        self.residency.bind(key, record.digest)
        self._catalog.free_unused(freed)
        self.phase(key, None)

    def roll_back(self, record: AdapterRecord, version: VersionRecord, warnings: dict[str, str]) -> None:
        """Move the name's pointer to a kept version; the folder keeps its content, see `held_back`."""
        before = record.digest
        record.digest, record.description, record.warnings = version.digest, version.description, warnings
        with self.store.transaction():
            self.history.point(record, version.origin)
            self._table.save(record)
            self.history.save(version)
            fields = {"digest": version.digest, "version": str(version.number), "before": before}
            self.events.append(
                "adapter.rolled_back", record.key.name, f"version v{version.number} is served again", fields
            )
        self.residency.bind(record.key, record.digest)
        self.touched(record.key)

    def quarantine(self, key: AdapterKey, reason: Quarantine, *, fingerprint: str, source: str) -> None:
        """Refuse the folder's content; a version that was served goes on being served."""
        record = self._records.get(key) or AdapterRecord(tenant=key.tenant, adapter=key.adapter)
        record.quarantine = reason
        record.fingerprint = fingerprint
        record.source_path = source
        record.base_digest = self.base.digest if self.base else ""
        fields = {key: value for key, value in msgspec.structs.asdict(reason).items() if value}
        with self.store.transaction():
            self._records[key] = record
            self._table.save(record)
            self.events.append("adapter.quarantined", key.name, str(reason), fields)
        self.phase(key, None)

    def retire(self, key: AdapterKey) -> None:
        """Take a name away; requests that lease its version finish with it."""
        if self._records.pop(key, None) is None:
            return
        self._phases.pop(key, None)
        self._seen.pop(key, None)
        with self.store.transaction():
            freed = self.history.forget(key)
            self._table.delete(key)
            self.events.append("adapter.deleted", key.name, "the name is retired")
        self.residency.bind(key, "")
        self._catalog.free_unused(freed)
        self.watchers.mark(key)

    def save(self, record: AdapterRecord) -> None:
        """Write a record that was changed in place."""
        self._table.save(record)
        self.touched(record.key)

    def save_policy(self, record: AdapterRecord) -> None:
        """Write a record whose pin or keep-alive changed."""
        self.save(record)
        if record.digest:
            self.residency.policy_changed(record.digest)

    def touched(self, key: AdapterKey) -> None:
        """Tell watchers, and the event log if the state is another than before."""
        state = self.state(key)
        before = self._seen.get(key)
        if state is not before:
            self._seen[key] = state
            # Quarantine tells its reasons itself.
            if state is not AdapterState.QUARANTINED:
                self.events.append(f"adapter.{state.name.lower()}", key.name, f"{state.name.lower()}")
        self.watchers.mark(key)

    # The engine's coming and going

    async def engine_up(self, engine: MountingEngine, base: BaseInfo, budget: int = 0) -> None:
        """Compare all versions with the base, and mount what was mounted, as far as the budget goes.

        Raises:
            UnavailableError: the engine died again meanwhile.
        """
        self.base = base
        self.residency.attach(engine, budget)
        self._catalog.prober.attach(engine)
        for record in self.records():
            if record.digest and record.base_digest != base.digest:
                await self._revalidate(record, base)
        wanted = [record for record in self.records() if record.digest and (record.keep_loaded or record.pinned)]
        for record in sorted(wanted, key=self._importance):
            if self.residency.has_room(record.digest):
                await self.mount(record)

    def engine_down(self) -> None:
        """Nothing is loaded any more."""
        self._catalog.prober.attach(None)
        self.residency.detach()

    async def mount(self, record: AdapterRecord) -> None:
        """Load a record's version; a refusal is an event, for the record stays available.

        Raises:
            UnavailableError: the engine died meanwhile.
        """
        with self.residency.lease(record.digest) as lease:
            try:
                await self.residency.enter(lease)
            except UnavailableError:
                raise
            except OptiqError as error:
                self.events.append("adapter.load_failed", record.key.name, str(error))

    def _importance(self, record: AdapterRecord) -> tuple[bool, float, float]:
        slot = self.residency.slot(record.digest)
        return not record.pinned, -(slot.used_at if slot else 0.0), -record.update_time

    async def _revalidate(self, record: AdapterRecord, base: BaseInfo) -> None:
        try:
            manifest = await asyncio.to_thread(read_manifest, self.blobs.path(record.digest))
            record.warnings = base.check(manifest)
        except AdapterError as error:
            record.digest = ""
            self.residency.bind(record.key, "")
            self.quarantine(record.key, Quarantine.of(error), fingerprint=record.fingerprint, source=record.source_path)
        else:
            record.base_digest = base.digest
            self.save(record)

    def _probed(self, digest: str, warning: str) -> None:
        for record in self._catalog.named(digest):
            if record.warnings.get("probe", "") != warning:
                others = {name: text for name, text in record.warnings.items() if name != "probe"}
                record.warnings = {**others, "probe": warning} if warning else others
                self.save(record)
                if warning:
                    self.events.append("adapter.warning", record.key.name, warning)

    def _prune(self, record: AdapterRecord) -> list[str]:
        return self.history.prune(record, self.retention.keep_versions, self.retention.keep_version_s)

    async def _keep_pruning(self) -> None:
        """Versions come of age also where nothing is published."""
        while True:
            for record in self.records():
                with self.store.transaction():
                    freed = self._prune(record)
                self._catalog.free_unused(freed)
            await asyncio.sleep(min(PRUNE_EVERY_S, self.retention.keep_version_s))


def not_found(key: AdapterKey) -> NotFoundError:
    """There is no such name."""
    return NotFoundError("adapter", key.name, f"there is no adapter {key.adapter!r} in tenant {key.tenant!r}")


def not_served(record: AdapterRecord, state: AdapterState) -> RefusedError | UnavailableError:
    """Why a name without a version cannot be used."""
    name = record.key.name
    if record.quarantine is None:
        return UnavailableError(f"{name} is being installed ({state.name.lower()})", reason="ADAPTER_NOT_READY")
    reason = record.quarantine
    fields = {key: value for key, value in msgspec.structs.asdict(reason).items() if value and key != "message"}
    return RefusedError(f"{name} is quarantined: {reason}", reason="ADAPTER_QUARANTINED", metadata=fields)
