"""Watches the drop folder and says which adapter folders lie still.

watchdog's thread only hands events to the event loop; everything else happens there. Events make it quick, a periodic
look at the whole folder makes it sure: inotify queues overflow, and network file systems raise no events at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.polling import PollingObserver

from optiq_core.errors import AdapterError
from optiq_daemon.names import DEFAULT_TENANT, ID_RULE, AdapterKey, is_id
from optiq_daemon.snapshot import being_written, take_snapshot
from optiq_daemon.tasks import Tasks

log = logging.getLogger(__name__)

# Reading raises opened and closed_no_write; they are no change, and our own copying must not look like one.
CHANGES = frozenset({"created", "modified", "moved", "deleted", "closed"})
# A file that somebody writes to holds its folder back, but not for ever after the last write.
HOLD_S = 10.0


class _Pending:
    """A folder that has changed and is not taken yet; times are of the monotonic clock."""

    def __init__(self, now: float) -> None:
        self.last_change = now
        self.timer: asyncio.TimerHandle | None = None


class DropWatcher:
    """Debounces changes per adapter folder.

    Args:
        root: the drop folder; made, with the default tenant's folder, when missing.
        settle_s: seconds without a change, and with no file open for writing, after which a folder is taken.
        reconcile_s: seconds between looks at everything.
        polling: compare the folder with itself in place of asking the system for events, as network file systems need.
        known: names that exist now; those without a folder are reported as settled too.
        on_tenant: a tenant's folder is there.
        on_change: a folder began to change.
        on_settled: a folder lies still, or is gone.
        on_ignored: a path that cannot be an adapter, and why; once per path.
    """

    def __init__(
        self,
        root: Path,
        *,
        settle_s: float,
        reconcile_s: float,
        polling: bool = False,
        known: Callable[[], Iterable[AdapterKey]],
        on_tenant: Callable[[str], None],
        on_change: Callable[[AdapterKey], None],
        on_settled: Callable[[AdapterKey], None],
        on_ignored: Callable[[Path, str], None],
    ) -> None:
        # Events carry real paths on macOS, where temporary folders lie behind a link.
        root.mkdir(parents=True, exist_ok=True)
        self._root = root.resolve()
        self._settle_s = settle_s
        self._reconcile_s = reconcile_s
        self._known = known
        self._on_tenant = on_tenant
        self._on_change = on_change
        self._on_settled = on_settled
        self._on_ignored = on_ignored
        self._pending: dict[AdapterKey, _Pending] = {}
        self._looks: dict[AdapterKey, str] = {}
        self._ignored: set[str] = set()
        self._observer = _Observer(self._root, self._from_thread, polling=polling)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._look_now = asyncio.Event()
        self._tasks = Tasks()

    async def start(self) -> None:
        """Begin watching; every folder that is there is reported once it has settled."""
        self._loop = asyncio.get_running_loop()
        self._make_folders()
        self._observer.start()
        await self._reconcile()
        self._tasks.start(self._keep_looking(), "reconcile drop folder")

    async def stop(self) -> None:
        """Stop watching."""
        await self._tasks.cancel()
        for pending in self._pending.values():
            if pending.timer is not None:
                pending.timer.cancel()
        self._pending.clear()
        await asyncio.to_thread(self._observer.stop)

    def touch(self, key: AdapterKey) -> None:
        """Note a change of a folder; it settles from now."""
        now = time.monotonic()
        pending = self._pending.get(key)
        if pending is None:
            pending = self._pending[key] = _Pending(now)
            self._arm(key, pending, self._settle_s)
            self._on_change(key)
        pending.last_change = now

    def _arm(self, key: AdapterKey, pending: _Pending, delay: float) -> None:
        pending.timer = asyncio.get_running_loop().call_later(delay, self._check, key)

    def _check(self, key: AdapterKey) -> None:
        pending = self._pending[key]
        still = time.monotonic() - pending.last_change
        if still < self._settle_s:
            self._arm(key, pending, self._settle_s - still)
        elif still < HOLD_S and being_written(self._root / key.tenant / key.adapter):
            self._arm(key, pending, self._settle_s)
        else:
            del self._pending[key]
            self._on_settled(key)

    def _from_thread(self, event: FileSystemEvent) -> None:
        loop = self._loop
        if loop is not None:
            # The loop may have closed while watchdog's thread was on its way.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._event, event)

    def _event(self, event: FileSystemEvent) -> None:
        for raw in (event.src_path, event.dest_path):
            if raw:
                self._path_event(event, os.fsdecode(raw))

    def _path_event(self, event: FileSystemEvent, path: str) -> None:
        try:
            parts = Path(path).relative_to(self._root).parts
        except ValueError:
            return
        if len(parts) < 2:
            if event.event_type in CHANGES:
                self._look_now.set()
            return
        if not self._is_adapter(parts[0], parts[1]):
            return
        key = AdapterKey(parts[0], parts[1])
        if event.event_type in CHANGES:
            self.touch(key)

    def _is_adapter(self, tenant: str, name: str) -> bool:
        if tenant.startswith(".") or name.startswith("."):
            return False
        if is_id(tenant) and is_id(name):
            return True
        self._ignore(self._root / tenant / name, ID_RULE)
        return False

    def _ignore(self, path: Path, why: str) -> None:
        if str(path) not in self._ignored:
            self._ignored.add(str(path))
            self._on_ignored(path, why)

    async def _keep_looking(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._look_now.wait(), self._reconcile_s)
            self._look_now.clear()
            try:
                self._make_folders()
                await self._reconcile()
            except OSError as error:
                log.warning("the drop folder %s cannot be read: %s", self._root, error)

    def _make_folders(self) -> None:
        (self._root / DEFAULT_TENANT).mkdir(parents=True, exist_ok=True)
        self._observer.follow()

    async def _reconcile(self) -> None:
        looks, tenants, ignored = await asyncio.to_thread(_look, self._root)
        for tenant in tenants:
            # It may have been deleted, folder and all, while the look went on.
            if (self._root / tenant).is_dir():
                self._on_tenant(tenant)
        for path, why in ignored:
            self._ignore(path, why)
        before, self._looks = self._looks, looks
        for key, fingerprint in looks.items():
            if before.get(key) != fingerprint:
                self.touch(key)
        for key in {*before, *self._known()} - looks.keys():
            self.touch(key)


class _Observer:
    """watchdog's observer, started anew when the folder that it watches is replaced by another."""

    def __init__(self, root: Path, report: Callable[[FileSystemEvent], None], *, polling: bool) -> None:
        self._root = root
        self._handler = _Handler(report)
        self._kind = PollingObserver if polling else Observer
        self._observer = self._kind()
        self._inode = 0

    def start(self) -> None:
        self._inode = self._root.stat().st_ino
        self._observer = self._kind()
        self._observer.schedule(self._handler, str(self._root), recursive=True)
        self._observer.start()

    def follow(self) -> None:
        if self._inode and (self._root.stat().st_ino != self._inode or not self._watches()):
            log.warning("the drop folder %s was replaced; watching the new one", self._root)
            self._end()
            self.start()

    def _watches(self) -> bool:
        # Its emitter ends when the folder is removed; a new one may get the same inode.
        return self._observer.is_alive() and all(emitter.is_alive() for emitter in self._observer.emitters)

    def stop(self) -> None:
        self._end()
        if self._observer.is_alive():
            self._observer.join(timeout=5)

    def _end(self) -> None:
        try:
            self._observer.stop()
        except KeyError as error:
            # watchdog loses count of folders that were renamed while it watched them, and stumbles when it ends.
            log.info("the drop folder's watch ended with folders that it did not know: %s", error)


class _Handler(FileSystemEventHandler):
    def __init__(self, report: Callable[[FileSystemEvent], None]) -> None:
        self._report = report

    def on_any_event(self, event: FileSystemEvent) -> None:
        self._report(event)


def _look(root: Path) -> tuple[dict[AdapterKey, str], list[str], list[tuple[Path, str]]]:
    """Fingerprints of all adapter folders, the tenants, and what cannot be an adapter; for a thread."""
    looks: dict[AdapterKey, str] = {}
    tenants: list[str] = []
    ignored: list[tuple[Path, str]] = []
    for tenant in _folders(root, ignored):
        tenants.append(tenant.name)
        for folder in _folders(tenant, ignored, links=True):
            key = AdapterKey(tenant.name, folder.name)
            try:
                snapshot = take_snapshot(folder)
            except AdapterError as error:
                looks[key] = error.code
            else:
                if snapshot is not None:
                    looks[key] = snapshot.fingerprint
    return looks, tenants, ignored


def _folders(parent: Path, ignored: list[tuple[Path, str]], *, links: bool = False) -> list[Path]:
    found = []
    try:
        entries = sorted(parent.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        ignored.append((parent, f"cannot be listed: {error.strerror}"))
        return []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_symlink() and not links:
            ignored.append((entry, "links are not followed"))
        elif not is_id(entry.name):
            ignored.append((entry, ID_RULE))
        elif entry.is_symlink() or entry.is_dir():
            found.append(entry)
    return found
