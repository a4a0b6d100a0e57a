"""The parts of :class:`optiq_client.Client`: adapters, runtime and events."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from optiq_client import calls, transfer
from optiq_client import types as t

if TYPE_CHECKING:
    from optiq_client.client import Client, Stream


class Adapters:
    """``client.adapters``: what can be served on top of the base."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self, *, timeout: float | None = None) -> list[t.Adapter]:
        """All adapters of the tenant, by name."""
        found: list[t.Adapter] = []
        token = ""
        while True:
            page = self._client.run(calls.list_adapters(self._client.tenant, token), timeout)
            found += page.items
            if not (token := page.next_token):
                return found

    def get(self, adapter: str, *, timeout: float | None = None) -> t.Adapter:
        """One adapter, by id or full name."""
        return self._client.run(calls.get_adapter(self._client.tenant, adapter), timeout)

    def import_folder(self, source: str | Path, adapter_id: str, *, timeout: float | None = None) -> t.Adapter:
        """Copy an adapter folder on this machine into the drop folder, under ``adapter_id``."""
        return self._client.run(calls.import_adapter(self._client.tenant, adapter_id, source), timeout)

    def delete(self, adapter: str, *, etag: str = "", timeout: float | None = None) -> None:
        """Retire the name; requests in flight finish. With ``etag``, only if nothing has changed since."""
        self._client.run(calls.delete_adapter(self._client.tenant, adapter, etag), timeout)

    def load(self, adapter: str, *, timeout: float | None = None) -> t.Adapter:
        """Put it into the engine now."""
        return self._client.run(calls.load_adapter(self._client.tenant, adapter), timeout)

    def unload(self, adapter: str, *, timeout: float | None = None) -> t.Adapter:
        """Take it out of the engine once its last request has ended."""
        return self._client.run(calls.unload_adapter(self._client.tenant, adapter), timeout)

    def history(self, adapter: str, *, timeout: float | None = None) -> builtins.list[t.AdapterVersion]:
        """The versions that the name keeps, the one that it pointed to last first."""
        found: list[t.AdapterVersion] = []
        token = ""
        while True:
            page = self._client.run(calls.list_versions(self._client.tenant, adapter, token), timeout)
            found += page.items
            if not (token := page.next_token):
                return found

    def modules(self, adapter: str, *, timeout: float | None = None) -> builtins.list[t.AdapterModule]:
        """The modules that the served version changes, ordered by path."""
        found: list[t.AdapterModule] = []
        token = ""
        while True:
            page = self._client.run(calls.list_modules(self._client.tenant, adapter, token), timeout)
            found += page.items
            if not (token := page.next_token):
                return found

    def rollback(self, adapter: str, version: str = "-1", *, etag: str = "", timeout: float | None = None) -> t.Adapter:
        """Point the name to a kept version: a digest or its beginning, ``v3``, or ``-1`` for the one before."""
        return self._client.run(calls.rollback_adapter(self._client.tenant, adapter, version, etag), timeout)

    def pin(self, adapter: str, *, timeout: float | None = None) -> t.Adapter:
        """Load it, and keep it in the engine whatever others ask for."""
        return self._client.run(calls.pin_adapter(self._client.tenant, adapter), timeout)

    def unpin(self, adapter: str, *, timeout: float | None = None) -> t.Adapter:
        """Let it make room for others again."""
        return self._client.run(calls.unpin_adapter(self._client.tenant, adapter), timeout)

    def keep_alive(
        self, adapter: str, seconds: float | None, *, etag: str = "", timeout: float | None = None
    ) -> t.Adapter:
        """Let it leave the engine after so long without a request: 0 for never, None for the daemon's setting."""
        return self._client.run(calls.set_keep_alive(self._client.tenant, adapter, seconds, etag), timeout)

    def upload(self, source: str | Path, adapter_id: str, *, timeout: float | None = None) -> t.Adapter:
        """Send an adapter folder to the daemon, wherever that is, and serve it as ``adapter_id``."""
        call = calls.upload_adapter(self._client.tenant, adapter_id, Path(source))
        return self._client.upload(call, timeout)

    def export(
        self,
        adapter: str,
        target: str | Path,
        *,
        form: str = "",
        version: str = "",
        overwrite: bool = False,
        timeout: float | None = None,
    ) -> str:
        """Write a version's files to a folder here; its digest.

        Args:
            form: ``mlx-lm`` or ``peft``; empty for the files as they were installed.
            version: a digest or its beginning, ``v3``, or ``-1``; the served one if empty.
            overwrite: replace a folder of that name.
        """
        writer = transfer.FolderWriter(Path(target), overwrite=overwrite)
        try:
            call = calls.export_adapter(self._client.tenant, adapter, version, form)
            for response in self._client.stream(call, timeout):
                writer.take(response)
            writer.finish()
        finally:
            writer.discard()
        return writer.digest

    def merge(self, parts: Mapping[str, float], adapter_id: str, *, timeout: float | None = None) -> t.Adapter:
        """Serve the weighted sum of several adapters as ``adapter_id``; ``parts`` maps adapters to weights."""
        return self._client.run(calls.merge_adapters(self._client.tenant, adapter_id, parts), timeout)

    def watch(self, *, timeout: float | None = None) -> Stream[t.AdapterChange]:
        """The list, LIST_END, then every change."""
        return self._client.stream(calls.watch_adapters(self._client.tenant), timeout)


class Runtime:
    """``client.runtime``: what the daemon does now."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def status(self, *, timeout: float | None = None) -> t.Status:
        """Base, device, engine, live requests and memory, now."""
        return self._client.run(calls.get_status(), timeout)

    def watch(self, *, interval: float = 1.0, timeout: float | None = None) -> Stream[t.Status]:
        """A status now, then one every ``interval`` seconds (0.1 to 60)."""
        return self._client.stream(calls.watch_telemetry(round(interval * 1000)), timeout)


class Events:
    """``client.events``: the daemon's log of what happened."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def watch(self, *, from_revision: int = 0, timeout: float | None = None) -> Stream[t.Event]:
        """Events from a revision on (only new ones for 0), then live.

        Raises while iterating:
            InvalidRequest: that revision is no longer kept.
        """
        return self._client.stream(calls.watch_events(from_revision), timeout)
