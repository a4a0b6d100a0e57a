"""`optiq.v1.AdapterService`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from optiq_core.adapters.format import read_manifest
from optiq_core.adapters.merge import merge_adapters
from optiq_core.errors import AdapterError
from optiq_daemon import convert, transfers
from optiq_daemon.engine_client import EngineClient
from optiq_daemon.errors import InvalidRequestError, NotFoundError, RefusedError, adapter_metadata
from optiq_daemon.identity import caller
from optiq_daemon.ingest import Ingest
from optiq_daemon.names import AdapterKey, check_id, parse_adapter, parse_adapter_ref, parse_parent
from optiq_daemon.registry import Registry, not_found, not_served
from optiq_daemon.tenants import Tenants, unknown_tenant
from optiq_protos.v1 import adapter_pb2, adapter_pb2_grpc

MAX_KEEP_ALIVE_S = 31_536_000

# What another tenant, whom an adapter is shared with, has no business with.
_OWNERS_FIELDS = ("source_path", "etag", "quarantine", "held_back_digest", "drop_to_routable_ms")

_CHANGE = adapter_pb2.WatchAdaptersResponse


def _any_dora(folders: list[Path]) -> bool:
    return any(read_manifest(folder).kind == "dora" for folder in folders)


class AdapterService(adapter_pb2_grpc.AdapterServiceServicer):
    """Translates between the wire and the registry.

    Args:
        engine: the serving engine's client, or raises UnavailableError.
    """

    def __init__(
        self, registry: Registry, ingest: Ingest, tenants: Tenants, engine: Callable[[], EngineClient]
    ) -> None:
        self._registry = registry
        self._ingest = ingest
        self._tenants = tenants
        self._engine = engine

    async def ListAdapters(self, request: adapter_pb2.ListAdaptersRequest, _: Any) -> adapter_pb2.ListAdaptersResponse:
        """A page, ordered by name."""
        tenant = self._tenant(request.parent)
        size = convert.page_size(request.page_size)
        scope = f"adapters/{tenant}"
        cursor = convert.page_cursor(scope, request.page_token, tuple[str, str])
        keys = [key for key in self._usable(tenant) if cursor is None or key > cursor]
        page = keys[:size]
        return adapter_pb2.ListAdaptersResponse(
            adapters=[self._message(key) for key in page],
            next_page_token=convert.page_token(scope, list(page[-1])) if len(keys) > size else "",
        )

    async def GetAdapter(self, request: adapter_pb2.GetAdapterRequest, _: Any) -> adapter_pb2.GetAdapterResponse:
        """One adapter."""
        key = parse_adapter(request.name)
        if not caller().sees(key.tenant) and not self._tenants.is_shared(key):
            raise unknown_tenant(key.tenant)
        return adapter_pb2.GetAdapterResponse(adapter=self._message(key))

    async def ImportAdapter(
        self, request: adapter_pb2.ImportAdapterRequest, _: Any
    ) -> adapter_pb2.ImportAdapterResponse:
        """Copy a folder of this machine into the drop folder and serve it."""
        key = AdapterKey(self._tenant(request.parent), check_id(request.adapter_id, "adapter_id"))
        source = Path(request.source_path)
        if not source.is_absolute() or "\0" in request.source_path:
            raise InvalidRequestError.of("source_path", "must be an absolute path of a folder on the daemon's machine")
        if not await asyncio.to_thread(source.is_dir):
            raise InvalidRequestError.of("source_path", f"{source} is not a folder that the daemon can read")
        try:
            await self._ingest.install(key, source)
        except AdapterError as error:
            raise RefusedError(f"{source}: {error}", reason=error.code, metadata=adapter_metadata(error)) from None
        return adapter_pb2.ImportAdapterResponse(adapter=self._message(key))

    async def DeleteAdapter(
        self, request: adapter_pb2.DeleteAdapterRequest, _: Any
    ) -> adapter_pb2.DeleteAdapterResponse:
        """Retire a name."""
        await self._ingest.remove(parse_adapter(request.name), request.etag)
        return adapter_pb2.DeleteAdapterResponse()

    async def LoadAdapter(self, request: adapter_pb2.LoadAdapterRequest, _: Any) -> adapter_pb2.LoadAdapterResponse:
        """Put an adapter into the engine now."""
        key = parse_adapter(request.name)
        resolved = self._registry.acquire(key.tenant, key.adapter)
        assert resolved.lease is not None
        with resolved.lease:
            await self._registry.residency.enter(resolved.lease)
        if (record := self._registry.find(key)) is not None:
            self._registry.save(record)
        return adapter_pb2.LoadAdapterResponse(adapter=self._message(key))

    async def UnloadAdapter(
        self, request: adapter_pb2.UnloadAdapterRequest, _: Any
    ) -> adapter_pb2.UnloadAdapterResponse:
        """Take an adapter out of the engine after its last request."""
        key = parse_adapter(request.name)
        record = self._registry.record(key)
        if not record.digest:
            raise not_served(record, self._registry.state(key))
        if record.pinned:
            raise RefusedError(f"{key.name} is pinned; unpin it first", reason="ADAPTER_PINNED")
        record.keep_loaded = False
        self._registry.save(record)
        await self._registry.residency.unload(record.digest)
        return adapter_pb2.UnloadAdapterResponse(adapter=self._message(key))

    async def UploadAdapter(
        self, requests: AsyncIterator[adapter_pb2.UploadAdapterRequest], _: Any
    ) -> adapter_pb2.UploadAdapterResponse:
        """Install files that the caller sends."""
        header = await transfers.first_header(requests)
        key = AdapterKey(self._tenant(header.parent), check_id(header.adapter_id, "header.adapter_id"))
        with transfers.scratch(self._registry.blobs) as folder:
            await transfers.receive(header, requests, folder)
            await self._installed(key, folder, "upload")
        return adapter_pb2.UploadAdapterResponse(adapter=self._message(key))

    async def ExportAdapter(
        self, request: adapter_pb2.ExportAdapterRequest, _: Any
    ) -> AsyncIterator[adapter_pb2.ExportAdapterResponse]:
        """Send a version's files."""
        key = parse_adapter(request.name)
        form = transfers.check_format(request.format)
        record = self._registry.record(key)
        if not request.version and not record.digest:
            raise not_served(record, self._registry.state(key))
        digest = self._registry.history.resolve(record, request.version).digest if request.version else record.digest
        # The lease keeps the bytes; they need not be in the engine.
        with self._registry.residency.lease(digest), transfers.scratch(self._registry.blobs) as folder:
            source = await asyncio.to_thread(transfers.exported, self._registry.blobs.path(digest), folder, form)
            async for response in transfers.send(digest, source):
                yield response

    async def MergeAdapters(
        self, request: adapter_pb2.MergeAdaptersRequest, _: Any
    ) -> adapter_pb2.MergeAdaptersResponse:
        """Install the weighted sum of several adapters."""
        tenant = self._tenant(request.parent)
        key = AdapterKey(tenant, check_id(request.adapter_id, "adapter_id"))
        with contextlib.ExitStack() as stack:
            parts = []
            for index, part in enumerate(request.parts):
                adapter, version = parse_adapter_ref(part.adapter, f"parts[{index}].adapter")
                resolved = self._registry.acquire(tenant, adapter, version, prefetch=False)
                assert resolved.lease is not None
                stack.enter_context(resolved.lease)
                parts.append((self._registry.blobs.path(resolved.digest), part.weight))
            folder = stack.enter_context(transfers.scratch(self._registry.blobs))
            if await asyncio.to_thread(_any_dora, [path for path, _ in parts]):
                await self._engine().merge(parts, folder / "merged")
            else:
                await asyncio.to_thread(merge_adapters, parts, folder / "merged")
            await self._installed(key, folder / "merged", "merge")
        return adapter_pb2.MergeAdaptersResponse(adapter=self._message(key))

    async def _installed(self, key: AdapterKey, folder: Path, origin: str) -> None:
        try:
            await self._ingest.install(key, folder, origin)
        except AdapterError as error:
            raise RefusedError(str(error), reason=error.code, metadata=adapter_metadata(error)) from None

    async def UpdateAdapter(
        self, request: adapter_pb2.UpdateAdapterRequest, _: Any
    ) -> adapter_pb2.UpdateAdapterResponse:
        """Set what stays in the engine."""
        wanted = request.adapter
        key = parse_adapter(wanted.name, "adapter.name")
        paths = set(request.update_mask.paths)
        if unknown := sorted(paths - {"pinned", "keep_alive_seconds"}):
            raise InvalidRequestError.of(
                "update_mask", f"{unknown[0]!r} cannot be set; pinned and keep_alive_seconds can"
            )
        seconds = wanted.keep_alive_seconds if wanted.HasField("keep_alive_seconds") else None
        if seconds is not None and not 0 <= seconds <= MAX_KEEP_ALIVE_S:
            raise InvalidRequestError.of("adapter.keep_alive_seconds", f"must be 0 to {MAX_KEEP_ALIVE_S}, is {seconds}")
        self._ingest.check_etag(key, wanted.etag)
        record = self._registry.record(key)
        if "keep_alive_seconds" in paths:
            record.keep_alive_s = seconds
            self._registry.save_policy(record)
        if "pinned" in paths:
            await self._pin(key, wanted.pinned)
        return adapter_pb2.UpdateAdapterResponse(adapter=self._message(key))

    async def PinAdapter(self, request: adapter_pb2.PinAdapterRequest, _: Any) -> adapter_pb2.PinAdapterResponse:
        """Keep an adapter in the engine."""
        key = parse_adapter(request.name)
        await self._pin(key, True)
        return adapter_pb2.PinAdapterResponse(adapter=self._message(key))

    async def UnpinAdapter(self, request: adapter_pb2.UnpinAdapterRequest, _: Any) -> adapter_pb2.UnpinAdapterResponse:
        """Let an adapter make room."""
        key = parse_adapter(request.name)
        await self._pin(key, False)
        return adapter_pb2.UnpinAdapterResponse(adapter=self._message(key))

    async def ListAdapterVersions(
        self, request: adapter_pb2.ListAdapterVersionsRequest, _: Any
    ) -> adapter_pb2.ListAdapterVersionsResponse:
        """A page, the version that the name pointed to last first."""
        key = parse_adapter(request.parent, "parent")
        self._registry.record(key)
        size = convert.page_size(request.page_size)
        scope = f"versions/{key.name}"
        cursor = convert.page_cursor(scope, request.page_token, tuple[float, int])
        versions = self._registry.history.of(key)
        if cursor is not None:
            versions = [v for v in versions if (v.publish_time, v.number) < cursor]
        page = versions[:size]
        more = convert.page_token(scope, [page[-1].publish_time, page[-1].number]) if len(versions) > size else ""
        return adapter_pb2.ListAdapterVersionsResponse(
            versions=[convert.adapter_version(self._registry, version) for version in page], next_page_token=more
        )

    async def ListAdapterModules(
        self, request: adapter_pb2.ListAdapterModulesRequest, _: Any
    ) -> adapter_pb2.ListAdapterModulesResponse:
        """A page, ordered by path, read from the version's headers."""
        key = parse_adapter(request.parent, "parent")
        record = self._registry.record(key)
        if not record.digest:
            raise not_served(record, self._registry.state(key))
        size = convert.page_size(request.page_size)
        scope = f"modules/{key.name}/{record.digest}"
        cursor = convert.page_cursor(scope, request.page_token, tuple[str])
        with self._registry.residency.lease(record.digest):
            manifest = await asyncio.to_thread(read_manifest, self._registry.blobs.path(record.digest))
        modules = [m for m in manifest.modules if cursor is None or m.path > cursor[0]]
        page = modules[:size]
        return adapter_pb2.ListAdapterModulesResponse(
            modules=[adapter_pb2.AdapterModule(path=m.path, rank=m.rank, scale=m.scale) for m in page],
            next_page_token=convert.page_token(scope, [page[-1].path]) if len(modules) > size else "",
        )

    async def RollbackAdapter(
        self, request: adapter_pb2.RollbackAdapterRequest, _: Any
    ) -> adapter_pb2.RollbackAdapterResponse:
        """Point a name to a kept version."""
        key = parse_adapter(request.name)
        await self._ingest.roll_back(key, request.version or "-1", request.etag)
        return adapter_pb2.RollbackAdapterResponse(adapter=self._message(key))

    async def WatchAdapters(
        self, request: adapter_pb2.WatchAdaptersRequest, _: Any
    ) -> AsyncIterator[adapter_pb2.WatchAdaptersResponse]:
        """List, then every change; changes that a slow reader missed are merged per name."""
        tenant = self._tenant(request.parent)
        subscription = self._registry.watchers.subscribe(tenant)
        try:
            for key in self._usable(tenant):
                if self._registry.find(key) is not None:
                    yield _CHANGE(type=_CHANGE.CHANGE_TYPE_LISTED, adapter=self._message(key))
            yield _CHANGE(type=_CHANGE.CHANGE_TYPE_LIST_END)
            while True:
                for key in await subscription.take():
                    usable = key.tenant == tenant or self._tenants.is_shared(key)
                    if not usable or self._registry.find(key) is None:
                        gone = adapter_pb2.Adapter(name=key.name)
                        yield _CHANGE(type=_CHANGE.CHANGE_TYPE_DELETED, adapter=gone)
                    else:
                        yield _CHANGE(type=_CHANGE.CHANGE_TYPE_CHANGED, adapter=self._message(key))
        finally:
            self._registry.watchers.unsubscribe(subscription)

    async def _pin(self, key: AdapterKey, pinned: bool) -> None:
        record = self._registry.record(key)
        if pinned and not record.pinned and record.digest:
            # What cannot be loaded cannot be pinned.
            with self._registry.residency.lease(record.digest) as lease:
                await self._registry.residency.enter(lease)
                self._set_pinned(key, pinned)
        else:
            self._set_pinned(key, pinned)

    def _set_pinned(self, key: AdapterKey, pinned: bool) -> None:
        record = self._registry.record(key)
        record.pinned = pinned
        record.keep_loaded = record.keep_loaded or pinned
        self._registry.save_policy(record)

    def _tenant(self, parent: str) -> str:
        tenant = parse_parent(parent)
        if not self._registry.store.has_tenant(tenant):
            raise NotFoundError("tenant", f"tenants/{tenant}", f"there is no tenant {tenant!r}")
        return tenant

    def _usable(self, tenant: str) -> list[AdapterKey]:
        """A tenant's own names, and those of others that are shared, in order."""
        own = [record.key for record in self._registry.records(tenant)]
        others = [key for key in self._tenants.shared() if key.tenant != tenant and self._registry.find(key)]
        return sorted([*own, *others])

    def _message(self, key: AdapterKey) -> adapter_pb2.Adapter:
        if self._registry.find(key) is None:
            raise not_found(key)
        message = convert.adapter(self._registry, key)
        message.shared = self._tenants.is_shared(key)
        if not caller().sees(key.tenant):
            for field in _OWNERS_FIELDS:
                message.ClearField(field)
        return message
