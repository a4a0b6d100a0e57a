"""The table of adapter names: which version each points to, its state, and who watches.

The drop folder is the truth about names, the store about bytes, the engine about what is loaded; this table joins them.
:mod:`optiq_daemon.ingest` fills it, :mod:`optiq_daemon.residency` loads and unloads for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from optiq_core.adapters.format import read_manifest, validate_against_base
from optiq_core.errors import AdapterError, OptiqError
from optiq_daemon.blobs import Blobs
from optiq_daemon.errors import NotFoundError, RefusedError, UnavailableError
from optiq_daemon.events import EventLog
from optiq_daemon.names import AdapterKey
from optiq_daemon.records import AdapterRecord, AdapterTable, Quarantine
from optiq_daemon.residency import Engine, Lease, Residency, SlotState
from optiq_daemon.signals import Changed
from optiq_daemon.states import AdapterState
from optiq_daemon.store import Store
from optiq_daemon.tasks import Tasks

log = logging.getLogger(__name__)

_SLOT_STATES = {
    SlotState.ABSENT: AdapterState.AVAILABLE,
    SlotState.LOADING: AdapterState.LOADING,
    SlotState.RESIDENT: AdapterState.RESIDENT,
    SlotState.UNLOADING: AdapterState.UNLOADING,
}


class BaseInfo(NamedTuple):
    """What an adapter must match: the base's digest, and (input, output) dims of each module by path."""

    digest: str
    modules: Mapping[str, tuple[int, int]]


class Resolved(NamedTuple):
    """What one request is served by. Release the lease when it ends; the bare base has none."""

    key: AdapterKey | None
    digest: str
    lease: Lease | None


class Subscription:
    """Names that changed since they were last taken; bounded by the number of names, whatever the reader does."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.changed = Changed()
        self._pending: dict[AdapterKey, None] = {}

    def mark(self, key: AdapterKey) -> None:
        """Note a change."""
        self._pending[key] = None
        self.changed.notify()

    async def take(self) -> list[AdapterKey]:
        """Wait for changes and take them."""
        while True:
            ticket = self.changed.ticket()
            if self._pending:
                taken, self._pending = list(self._pending), {}
                return taken
            await ticket.wait()


class Registry:
    """Adapter names of all tenants; lives on the event loop."""

    def __init__(self, store: Store, events: EventLog, blobs: Blobs) -> None:
        self.store = store
        self.events = events
        self.blobs = blobs
        self.base: BaseInfo | None = None
        self.residency = Residency(blobs.path, self._slot_changed, self._freed)
        self._table = AdapterTable(store)
        self._records: dict[AdapterKey, AdapterRecord] = {}
        self._phases: dict[AdapterKey, AdapterState] = {}
        self._seen: dict[AdapterKey, AdapterState] = {}
        self._subscriptions: set[Subscription] = set()
        self._tasks = Tasks()

    def restore(self) -> None:
        """Read the store at start; a version whose bytes are gone is taken from its folder again."""
        for record in self._table.load():
            if record.digest and not self.blobs.has(record.digest):
                log.warning("%s: version %s is missing from the store", record.key.name, record.digest[:12])
                record.digest, record.fingerprint = "", ""
                self._table.save(record)
            self._records[record.key] = record
            self.residency.bind(record.key, record.digest)
            self._seen[record.key] = self.state(record.key)
        self.blobs.reconcile(record.digest for record in self._records.values() if record.digest)

    async def close(self) -> None:
        """End what is under way."""
        await self.residency.close()
        await self._tasks.cancel()

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

    def acquire(self, tenant: str, adapter: str, digest: str = "") -> Resolved:
        """Resolve a request's adapter, once, and lease its version. An empty adapter is the bare base.

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
        if not record.digest:
            raise not_served(record, self.state(key))
        if digest and digest != record.digest:
            raise NotFoundError(
                "adapter version",
                f"{key.name}@{digest}",
                f"{key.name} has no version {digest[:12]} any more; it points to {record.digest}",
            )
        record.keep_loaded = True
        return Resolved(key, record.digest, self.residency.lease(record.digest))

    # Watching

    def subscribe(self, tenant: str) -> Subscription:
        """Be told which names of a tenant change."""
        subscription = Subscription(tenant)
        self._subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Be told no more."""
        self._subscriptions.discard(subscription)

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

    def publish(self, record: AdapterRecord) -> None:
        """Move the name's pointer to the record's digest."""
        key = record.key
        fresh = self._records.get(key)
        moved = fresh is None or fresh.digest != record.digest
        with self.store.transaction():
            self._records[key] = record
            self._table.save(record)
            if moved:
                milliseconds = f"{record.drop_to_routable_ms:.1f}"
                fields = {"digest": record.digest, "drop_to_routable_ms": milliseconds}
                self.events.append("adapter.published", key.name, f"version {record.digest[:12]} is served", fields)
        self.residency.bind(key, record.digest)
        self.phase(key, None)

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
            self._table.delete(key)
            self.events.append("adapter.deleted", key.name, "the name is retired")
        self.residency.bind(key, "")
        self._mark(key)

    def save(self, record: AdapterRecord) -> None:
        """Write a record that was changed in place."""
        self._table.save(record)
        self.touched(record.key)

    def touched(self, key: AdapterKey) -> None:
        """Tell watchers, and the event log if the state is another than before."""
        state = self.state(key)
        before = self._seen.get(key)
        if state is not before:
            self._seen[key] = state
            # Quarantine tells its reasons itself.
            if state is not AdapterState.QUARANTINED:
                self.events.append(f"adapter.{state.name.lower()}", key.name, f"{state.name.lower()}")
        self._mark(key)

    # The engine's coming and going

    async def engine_up(self, engine: Engine, base: BaseInfo) -> None:
        """Compare all versions with the base, and mount what was mounted.

        Raises:
            UnavailableError: the engine died again meanwhile.
        """
        self.base = base
        self.residency.attach(engine)
        for record in self.records():
            if record.digest and record.base_digest != base.digest:
                await self._revalidate(record, base)
        for record in self.records():
            if record.digest and record.keep_loaded:
                await self.mount(record)

    def engine_down(self) -> None:
        """Nothing is loaded any more."""
        self.residency.detach()

    async def mount(self, record: AdapterRecord) -> None:
        """Load a record's version; a refusal is an event, for the record stays available.

        Raises:
            UnavailableError: the engine died meanwhile.
        """
        with self.residency.lease(record.digest):
            try:
                await self.residency.ensure(record.digest)
            except UnavailableError:
                raise
            except OptiqError as error:
                self.events.append("adapter.load_failed", record.key.name, str(error))

    async def _revalidate(self, record: AdapterRecord, base: BaseInfo) -> None:
        try:
            manifest = await asyncio.to_thread(read_manifest, self.blobs.path(record.digest))
            validate_against_base(manifest, base.modules)
        except AdapterError as error:
            record.digest = ""
            self.residency.bind(record.key, "")
            self.quarantine(record.key, Quarantine.of(error), fingerprint=record.fingerprint, source=record.source_path)
        else:
            record.base_digest = base.digest
            self.save(record)

    def _slot_changed(self, digest: str) -> None:
        for key in self._named(digest):
            self.touched(key)

    def _freed(self, digest: str) -> None:
        if not any(self._named(digest)):
            self.blobs.detach(digest)
            self._tasks.start(asyncio.to_thread(self.blobs.sweep), "sweep blobs")

    def _named(self, digest: str) -> Iterator[AdapterKey]:
        return (key for key, record in list(self._records.items()) if record.digest == digest)

    def _mark(self, key: AdapterKey) -> None:
        for subscription in self._subscriptions:
            if subscription.tenant == key.tenant:
                subscription.mark(key)


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
