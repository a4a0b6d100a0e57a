"""Adapter records: what the daemon knows about each name, and its rows in the store."""

from __future__ import annotations

import time

import msgspec

from optiq_core.adapters.format import AdapterManifest
from optiq_core.errors import AdapterError
from optiq_daemon.names import AdapterKey
from optiq_daemon.store import Store


class Quarantine(msgspec.Struct, frozen=True, kw_only=True):
    """Why the newest content of a folder is not served; the fields of :class:`AdapterError`."""

    code: str
    message: str
    file: str = ""
    tensor: str = ""
    expected: str = ""
    found: str = ""

    @classmethod
    def of(cls, error: AdapterError) -> Quarantine:
        """The reason that `error` gives."""
        return cls(
            code=error.code,
            message=error.message,
            file=error.file,
            tensor=error.tensor,
            expected=error.expected,
            found=error.found,
        )

    def __str__(self) -> str:
        return str(
            AdapterError(
                self.code, self.message, file=self.file, tensor=self.tensor, expected=self.expected, found=self.found
            )
        )


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a manifest that are shown."""

    format: str
    kind: str
    base_model: str
    module_count: int
    min_rank: int
    max_rank: int
    parameter_count: int
    targets: tuple[str, ...]
    disk_bytes: int

    @classmethod
    def of(cls, manifest: AdapterManifest) -> Description:
        """What `manifest` says."""
        return cls(
            format=manifest.format,
            kind=manifest.kind,
            base_model=manifest.base_model,
            module_count=len(manifest.modules),
            min_rank=manifest.min_rank,
            max_rank=manifest.max_rank,
            parameter_count=manifest.parameter_count,
            targets=tuple(manifest.targets),
            disk_bytes=manifest.disk_bytes,
        )


class AdapterRecord(msgspec.Struct, kw_only=True):
    """One name. Times are in seconds since the epoch.

    `digest` is the served version, empty while there is none. `fingerprint` is the folder's when it was last taken or
    refused, `folder_digest` the version that it held then (another one than `digest` after a rollback), `base_digest`
    the base that it was compared with. `keep_loaded` is false after an explicit unload, `last_number` the number of
    the newest version ever. `keep_alive_s` is None for the setting's value. `warnings` are sentences by what was looked
    at: `base`, the base that the folder names, and `probe`, the loaded version's logits.
    """

    tenant: str
    adapter: str
    digest: str = ""
    description: Description | None = None
    quarantine: Quarantine | None = None
    fingerprint: str = ""
    base_digest: str = ""
    source_path: str = ""
    keep_loaded: bool = True
    create_time: float = msgspec.field(default_factory=time.time)
    update_time: float = msgspec.field(default_factory=time.time)
    drop_to_routable_ms: float = 0.0
    folder_digest: str = ""
    last_number: int = 0
    pinned: bool = False
    keep_alive_s: float | None = None
    warnings: dict[str, str] = {}

    @property
    def key(self) -> AdapterKey:
        """Its name's parts."""
        return AdapterKey(self.tenant, self.adapter)


class AdapterTable:
    """The rows of the `adapters` table."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def load(self) -> list[AdapterRecord]:
        """All records."""
        rows = self._store.rows("SELECT document FROM adapters ORDER BY tenant, id")
        return [msgspec.json.decode(row["document"], type=AdapterRecord) for row in rows]

    def save(self, record: AdapterRecord) -> None:
        """Write a record; the name's pointer moves with it."""
        record.update_time = time.time()
        document = msgspec.json.encode(record).decode()
        self._store.execute(
            "INSERT INTO adapters (tenant, id, digest, document) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (tenant, id) DO UPDATE SET digest = excluded.digest, document = excluded.document",
            (record.tenant, record.adapter, record.digest, document),
        )

    def delete(self, key: AdapterKey) -> None:
        """Forget a name."""
        self._store.execute("DELETE FROM adapters WHERE tenant = ? AND id = ?", key)
