"""The versions that each name keeps, the one that it pointed to last first, and how to speak of them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import msgspec

from optiq_daemon.errors import NotFoundError
from optiq_daemon.names import AdapterKey
from optiq_daemon.records import AdapterRecord, Description
from optiq_daemon.store import Store

_BACK = re.compile(r"-(\d{1,4})")
_NUMBER = re.compile(r"v(\d{1,9})")


class VersionRecord(msgspec.Struct, kw_only=True):
    """One version of a name. Times are in seconds since the epoch.

    `number` counts the name's versions from 1 and is never used twice. `origin` says how it came: folder, import,
    upload, training or merge. `publish_time` is when the name pointed to it last.
    """

    tenant: str
    adapter: str
    digest: str
    number: int
    origin: str
    description: Description | None = None
    create_time: float = msgspec.field(default_factory=time.time)
    publish_time: float = msgspec.field(default_factory=time.time)

    @property
    def key(self) -> AdapterKey:
        """Whose version it is."""
        return AdapterKey(self.tenant, self.adapter)


class History:
    """The kept versions of all names; writes through to the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._versions: dict[AdapterKey, list[VersionRecord]] = {}
        self._holders: dict[str, set[AdapterKey]] = {}
        # Says which versions something else names, so that pruning leaves them.
        self.is_held: Callable[[VersionRecord], bool] = lambda _: False

    def load(self) -> None:
        """Read the store."""
        rows = self._store.rows("SELECT document FROM adapter_versions ORDER BY publish_time DESC, number DESC")
        for row in rows:
            version = msgspec.json.decode(row["document"], type=VersionRecord)
            self._versions.setdefault(version.key, []).append(version)
            self._holders.setdefault(version.digest, set()).add(version.key)

    def of(self, key: AdapterKey) -> list[VersionRecord]:
        """Versions of a name; the first is the one that it pointed to last."""
        return list(self._versions.get(key, ()))

    def find(self, key: AdapterKey, digest: str) -> VersionRecord | None:
        """A name's version by its digest."""
        return next((version for version in self._versions.get(key, ()) if version.digest == digest), None)

    def keeps(self, digest: str) -> bool:
        """Whether any name keeps these bytes."""
        return digest in self._holders

    def any_of(self, digest: str) -> VersionRecord | None:
        """Some name's version with this digest."""
        holders = self._holders.get(digest)
        return self.find(next(iter(holders)), digest) if holders else None

    def resolve(self, record: AdapterRecord, text: str) -> VersionRecord:
        """The version that `text` means: a digest or its beginning, `v3`, or `-1` for the one served before.

        Raises:
            NotFoundError: none, or several, are meant.
        """
        key = record.key
        versions = self._versions.get(key, [])
        if back := _BACK.fullmatch(text):
            others = [version for version in versions if version.digest != record.digest]
            found = others[int(back[1]) - 1 : int(back[1])] if int(back[1]) else []
        elif number := _NUMBER.fullmatch(text):
            found = [version for version in versions if version.number == int(number[1])]
        else:
            found = [version for version in versions if text and version.digest.startswith(text)]
        if len(found) == 1:
            return found[0]
        what = "has no version" if not found else f"has {len(found)} versions"
        kept = ", ".join(f"v{version.number} {version.digest[:12]}" for version in versions) or "none"
        raise NotFoundError(
            "adapter version", f"{key.name}@{text}", f"{key.name} {what} {text[:64]!r} any more; kept are {kept}"
        )

    def point(self, record: AdapterRecord, origin: str) -> VersionRecord:
        """Note that the name points to the record's digest from now; the record's counter may advance."""
        version = self.find(record.key, record.digest)
        if version is None:
            record.last_number += 1
            version = VersionRecord(
                tenant=record.tenant,
                adapter=record.adapter,
                digest=record.digest,
                number=record.last_number,
                origin=origin,
                description=record.description,
            )
            self._holders.setdefault(version.digest, set()).add(version.key)
        else:
            self._versions[record.key].remove(version)
            # Two changes within the clock's resolution keep their order.
            newest = self._versions[record.key][0].publish_time if self._versions[record.key] else 0.0
            version.publish_time = max(time.time(), newest + 1e-6)
        self._versions.setdefault(record.key, []).insert(0, version)
        return version

    def save(self, version: VersionRecord) -> None:
        """Write a version; its name's row must be there."""
        self._store.execute(
            "INSERT INTO adapter_versions (tenant, id, digest, number, publish_time, document)"
            " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (tenant, id, digest)"
            " DO UPDATE SET publish_time = excluded.publish_time, document = excluded.document",
            (
                version.tenant,
                version.adapter,
                version.digest,
                version.number,
                version.publish_time,
                msgspec.json.encode(version).decode(),
            ),
        )

    def prune(self, record: AdapterRecord, keep: int, seconds: float = 0.0) -> list[str]:
        """Forget all but the last `keep` versions of a name, never the one that it points to, nor one that is held.

        Args:
            seconds: forget also what another took the place of so long ago; 0 for no limit.

        Returns:
            Digests that no name keeps any more.
        """
        versions = self._versions.get(record.key, [])
        since = time.time() - seconds if seconds else 0.0
        # A version was served until the one before it in the list came.
        aged = [newer.publish_time < since for newer in versions[: max(keep - 1, 0)]]
        old = [version for version, is_old in zip(versions[1:], aged, strict=False) if is_old] + versions[keep:]
        old = [version for version in old if version.digest != record.digest and not self.is_held(version)]
        return [digest for version in old for digest in self.drop(version)]

    def drop(self, version: VersionRecord) -> list[str]:
        """Forget one version; returns its digest if no name keeps it any more."""
        self._versions[version.key].remove(version)
        self._store.execute(
            "DELETE FROM adapter_versions WHERE tenant = ? AND id = ? AND digest = ?",
            (version.tenant, version.adapter, version.digest),
        )
        holders = self._holders[version.digest]
        holders.discard(version.key)
        if holders:
            return []
        del self._holders[version.digest]
        return [version.digest]

    def forget(self, key: AdapterKey) -> list[str]:
        """Forget all versions of a name; returns the digests that no name keeps any more."""
        freed = [digest for version in self.of(key) for digest in self.drop(version)]
        self._versions.pop(key, None)
        return freed

    def digests(self) -> set[str]:
        """All that some name keeps."""
        return set(self._holders)
