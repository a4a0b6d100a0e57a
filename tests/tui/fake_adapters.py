"""Adapters of the fake daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from google.rpc import code_pb2, error_details_pb2

from optiq_protos.v1 import adapter_pb2, adapter_pb2_grpc
from tests.tui.fake_parts import Broadcast, Noted, fail


class FakeAdapters(Noted, adapter_pb2_grpc.AdapterServiceServicer):
    """Adapters in a dictionary. Setters push to the open watches."""

    def __init__(self) -> None:
        super().__init__()
        self.adapters: dict[str, adapter_pb2.Adapter] = {}
        self.versions: dict[str, list[adapter_pb2.AdapterVersion]] = {}
        self.ranks: dict[str, int] = {}
        self._adapter_changes = Broadcast()

    def put_adapter(self, adapter: adapter_pb2.Adapter) -> None:
        self.adapters[adapter.name] = adapter
        self._adapter_changes.send(
            adapter_pb2.WatchAdaptersResponse(
                type=adapter_pb2.WatchAdaptersResponse.CHANGE_TYPE_CHANGED, adapter=adapter
            )
        )

    def drop_adapter(self, name: str) -> None:
        self._adapter_changes.send(
            adapter_pb2.WatchAdaptersResponse(
                type=adapter_pb2.WatchAdaptersResponse.CHANGE_TYPE_DELETED, adapter=self.adapters.pop(name)
            )
        )

    async def ListAdapters(self, request: Any, context: Any) -> Any:
        """Two a page, whatever is asked, so that paging is always exercised."""
        names = sorted(self.adapters)
        start = int(request.page_token or 0)
        page = names[start : start + 2]
        more = str(start + 2) if start + 2 < len(names) else ""
        return adapter_pb2.ListAdaptersResponse(adapters=[self.adapters[n] for n in page], next_page_token=more)

    async def _adapter(self, name: str, context: Any) -> adapter_pb2.Adapter:
        if name not in self.adapters:
            await fail(context, code_pb2.NOT_FOUND, f"no adapter {name}", "ADAPTER_NOT_FOUND")
        return self.adapters[name]

    async def GetAdapter(self, request: Any, context: Any) -> Any:
        return adapter_pb2.GetAdapterResponse(adapter=await self._adapter(request.name, context))

    async def ImportAdapter(self, request: Any, context: Any) -> Any:
        self.calls.append(request)
        if not request.adapter_id.isalnum():
            violation = error_details_pb2.BadRequest.FieldViolation(
                field="adapter_id", description="must match ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"
            )
            await fail(
                context,
                code_pb2.INVALID_ARGUMENT,
                "the request is wrong",
                "INVALID_FIELD",
                error_details_pb2.BadRequest(field_violations=[violation]),
            )
        adapter = adapter_pb2.Adapter(
            name=f"{request.parent}/adapters/{request.adapter_id}",
            state=adapter_pb2.ADAPTER_STATE_RESIDENT,
            source_path=request.source_path,
        )
        self.put_adapter(adapter)
        return adapter_pb2.ImportAdapterResponse(adapter=adapter)

    async def DeleteAdapter(self, request: Any, context: Any) -> Any:
        self.calls.append(request)
        await self._adapter(request.name, context)
        self.drop_adapter(request.name)
        return adapter_pb2.DeleteAdapterResponse()

    async def _change(self, request: Any, context: Any, **values: Any) -> adapter_pb2.Adapter:
        self.calls.append(request)
        adapter = adapter_pb2.Adapter()
        adapter.CopyFrom(await self._adapter(request.name, context))
        for field, value in values.items():
            setattr(adapter, field, value)
        self.put_adapter(adapter)
        return adapter

    async def LoadAdapter(self, request: Any, context: Any) -> Any:
        adapter = await self._change(request, context, state=adapter_pb2.ADAPTER_STATE_RESIDENT)
        return adapter_pb2.LoadAdapterResponse(adapter=adapter)

    async def UnloadAdapter(self, request: Any, context: Any) -> Any:
        adapter = await self._change(request, context, state=adapter_pb2.ADAPTER_STATE_AVAILABLE)
        return adapter_pb2.UnloadAdapterResponse(adapter=adapter)

    async def PinAdapter(self, request: Any, context: Any) -> Any:
        return adapter_pb2.PinAdapterResponse(adapter=await self._change(request, context, pinned=True))

    async def UnpinAdapter(self, request: Any, context: Any) -> Any:
        return adapter_pb2.UnpinAdapterResponse(adapter=await self._change(request, context, pinned=False))

    async def RollbackAdapter(self, request: Any, context: Any) -> Any:
        number = int(request.version.removeprefix("v"))
        return adapter_pb2.RollbackAdapterResponse(adapter=await self._change(request, context, version=number))

    async def ListAdapterVersions(self, request: Any, context: Any) -> Any:
        await self._adapter(request.parent, context)
        return adapter_pb2.ListAdapterVersionsResponse(versions=self.versions.get(request.parent, []))

    async def ListAdapterModules(self, request: Any, context: Any) -> Any:
        await self._adapter(request.parent, context)
        modules = [adapter_pb2.AdapterModule(path=path, rank=rank, scale=20) for path, rank in self.ranks.items()]
        return adapter_pb2.ListAdapterModulesResponse(modules=modules)

    async def WatchAdapters(self, request: Any, context: Any) -> AsyncIterator[Any]:
        kinds = adapter_pb2.WatchAdaptersResponse
        first = [kinds(type=kinds.CHANGE_TYPE_LISTED, adapter=a) for a in self.adapters.values()]
        first.append(kinds(type=kinds.CHANGE_TYPE_LIST_END))
        async for change in self._adapter_changes.receive(first):
            yield change
