"""Tenant records: role, weight, quotas, and what is shared between tenants."""

from __future__ import annotations

import hashlib
import math
import sqlite3
import time
from typing import Literal

import msgspec

from optiq_daemon.errors import AlreadyExistsError, ConflictError, InvalidRequestError, NotFoundError
from optiq_daemon.events import EventLog
from optiq_daemon.names import AdapterKey
from optiq_daemon.store import Store
from optiq_daemon.tokens import TokenTable

MIN_WEIGHT, MAX_WEIGHT = 0.001, 1000.0
MAX_PATHS = 64

Role = Literal["tenant", "admin"]


class Quotas(msgspec.Struct, frozen=True, kw_only=True):
    """Limits; 0 means none. The fields of `optiq.v1.TenantQuotas`."""

    concurrent_requests: int = 0
    queued_requests: int = 0
    tokens_per_minute: int = 0
    resident_bytes: int = 0
    queued_jobs: int = 0
    disk_bytes: int = 0


class TenantRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant. Times are in seconds since the epoch; `id` and `create_time` are columns of their own."""

    id: str
    role: Role = "tenant"
    weight: float = 1.0
    quotas: Quotas = Quotas()
    allowed_paths: tuple[str, ...] = ()
    create_time: float = 0.0
    update_time: float = 0.0

    @property
    def name(self) -> str:
        """`tenants/{tenant}`."""
        return f"tenants/{self.id}"

    @property
    def etag(self) -> str:
        """Changes with every change of the record."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]

    def violations(self) -> list[tuple[str, str]]:
        """Fields that cannot be, and what would be right."""
        wrong = []
        if not (math.isfinite(self.weight) and MIN_WEIGHT <= self.weight <= MAX_WEIGHT):
            wrong.append(("weight", f"must be {MIN_WEIGHT:g} to {MAX_WEIGHT:g}, is {self.weight:g}"))
        for field, value in msgspec.structs.asdict(self.quotas).items():
            if value < 0:
                wrong.append((f"quotas.{field}", f"must be 0 (no limit) or more, is {value}"))
        if len(self.allowed_paths) > MAX_PATHS:
            wrong.append(("allowed_paths", f"at most {MAX_PATHS}, found {len(self.allowed_paths)}"))
        for index, path in enumerate(self.allowed_paths):
            if not path.startswith("/") or "\0" in path:
                wrong.append((f"allowed_paths[{index}]", f"must be an absolute path, is {path!r}"))
        return wrong


class Tenants:
    """All tenants; lives on the event loop. Records are kept in memory: every request looks at its tenant's."""

    def __init__(self, store: Store, events: EventLog) -> None:
        self._store = store
        self._events = events
        self.tokens = TokenTable(store)
        self._records: dict[str, TenantRecord] = {}
        for row in store.rows("SELECT id, create_time, document FROM tenants"):
            self._records[row["id"]] = _decode(row)
        rows = store.rows("SELECT adapter, tenant FROM shares")
        self._shares: dict[str, str] = {row["adapter"]: row["tenant"] for row in rows}

    def all(self) -> list[TenantRecord]:
        """Ordered by id."""
        return [self._records[id_] for id_ in sorted(self._records)]

    def get(self, tenant: str) -> TenantRecord:
        """One tenant.

        Raises:
            NotFoundError: there is none.
        """
        record = self._records.get(tenant)
        if record is None:
            raise unknown_tenant(tenant)
        return record

    def find(self, tenant: str) -> TenantRecord:
        """One tenant; one with every default if it has just been deleted."""
        return self._records.get(tenant) or TenantRecord(id=tenant)

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, tenant: str) -> bool:
        return tenant in self._records

    def create(self, record: TenantRecord, why: str = "") -> TenantRecord:
        """Add a tenant.

        Raises:
            AlreadyExistsError: there is one with this id.
            InvalidRequestError: names every field that is out of range.
        """
        if record.id in self._records:
            raise AlreadyExistsError("tenant", record.name, f"there is a tenant {record.id!r} already")
        now = time.time()
        made = self._checked(msgspec.structs.replace(record, create_time=now, update_time=now))
        with self._store.transaction():
            self._store.execute("INSERT INTO tenants (id, create_time) VALUES (?, ?)", (made.id, made.create_time))
            self._write(made)
            self._events.append("tenant.created", made.name, why or f"{made.role}, weight {made.weight:g}")
        return made

    def update(self, record: TenantRecord, etag: str = "") -> TenantRecord:
        """Replace a tenant's record.

        Raises:
            ConflictError: the etag is not the record's.
            InvalidRequestError: names every field that is out of range.
        """
        self.check_etag(record.id, etag)
        made = self.get(record.id).create_time
        changed = self._checked(msgspec.structs.replace(record, create_time=made, update_time=time.time()))
        with self._store.transaction():
            self._write(changed)
            self._events.append("tenant.updated", changed.name, f"{changed.role}, weight {changed.weight:g}")
        return changed

    def delete(self, tenant: str) -> None:
        """Remove a tenant that owns nothing any more, with its tokens, shares and usage."""
        record = self.get(tenant)
        try:
            with self._store.transaction():
                self._store.execute("DELETE FROM tenants WHERE id = ?", (tenant,))
                self._events.append("tenant.deleted", record.name, "removed with its tokens and its usage")
        except sqlite3.IntegrityError:
            raise ConflictError("tenant", record.name, f"{record.name} got an adapter or a job meanwhile") from None
        del self._records[tenant]
        self._shares = {adapter: owner for adapter, owner in self._shares.items() if owner != tenant}

    def check_etag(self, tenant: str, etag: str) -> None:
        """Raise ConflictError if an etag is given and is not the record's."""
        record = self.get(tenant)
        if etag and etag != record.etag:
            raise ConflictError("tenant", record.name, f"{record.name} has changed since it was read; read it again")

    # Sharing

    def share(self, key: AdapterKey) -> None:
        """Let every tenant use an adapter.

        Raises:
            AlreadyExistsError: another owner's adapter is shared under this id.
        """
        owner = self._shares.get(key.adapter)
        if owner not in (None, key.tenant):
            raise AlreadyExistsError(
                "shared adapter",
                key.name,
                f"tenants/{owner}/adapters/{key.adapter} is shared under this id already; unshare it first",
            )
        if owner is None:
            self._store.execute("INSERT INTO shares (adapter, tenant) VALUES (?, ?)", (key.adapter, key.tenant))
            self._shares[key.adapter] = key.tenant
            self._events.append("adapter.shared", key.name, "every tenant may use it")

    def unshare(self, key: AdapterKey) -> None:
        """Make an adapter private again; requests in flight finish.

        Raises:
            NotFoundError: it is not shared.
        """
        if not self.is_shared(key):
            raise NotFoundError("shared adapter", key.name, f"{key.name} is not shared")
        self._store.execute("DELETE FROM shares WHERE adapter = ?", (key.adapter,))
        del self._shares[key.adapter]
        self._events.append("adapter.unshared", key.name, "private again")

    def shared(self) -> list[AdapterKey]:
        """What every tenant may use, ordered by adapter id."""
        return [AdapterKey(self._shares[adapter], adapter) for adapter in sorted(self._shares)]

    def shared_owner(self, adapter: str) -> str:
        """Whose adapter is shared under this id; empty if none is."""
        return self._shares.get(adapter, "")

    def is_shared(self, key: AdapterKey) -> bool:
        """Whether every tenant may use an adapter."""
        return self._shares.get(key.adapter) == key.tenant

    def _checked(self, record: TenantRecord) -> TenantRecord:
        if violations := record.violations():
            raise InvalidRequestError([(f"tenant.{field}", text) for field, text in violations])
        return record

    def _write(self, record: TenantRecord) -> None:
        self._records[record.id] = record
        document = msgspec.to_builtins(record)
        del document["id"], document["create_time"]
        self._store.execute(
            "UPDATE tenants SET document = ? WHERE id = ?", (msgspec.json.encode(document).decode(), record.id)
        )


def unknown_tenant(tenant: str) -> NotFoundError:
    """There is no such tenant, or none for this caller."""
    return NotFoundError("tenant", f"tenants/{tenant}", f"there is no tenant {tenant!r}")


def _decode(row: sqlite3.Row) -> TenantRecord:
    held = msgspec.json.decode(str(row["document"]))
    return msgspec.convert({**held, "id": row["id"], "create_time": row["create_time"]}, TenantRecord)
