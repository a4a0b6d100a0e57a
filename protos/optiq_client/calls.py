"""Every RPC as data: path, request, response type, conversion. The sync and the async client only execute them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from google.protobuf import field_mask_pb2
from google.protobuf.message import Message as Proto
from grpc_health.v1 import health_pb2

from optiq_client import chat, convert, states, transfer
from optiq_client import generation_events as g
from optiq_client import types as t
from optiq_protos.v1 import adapter_pb2, event_pb2, generation_pb2, runtime_pb2

T = TypeVar("T")

Prompt = str | Sequence[chat.Message | Mapping[str, str]] | Sequence[int]
"""One user turn, a conversation, or token ids."""

PAGE_SIZE = 500


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One RPC, ready to run.

    Attributes:
        path: ``/package.Service/Method``.
        request: the message to send.
        response: the message type that comes back.
        convert: from that message to what the caller gets.
    """

    path: str
    request: Proto
    response: type[Any]
    convert: Callable[[Any], T]


@dataclass(frozen=True, slots=True)
class Upload(Call[T]):
    """An RPC with a stream of requests.

    Attributes:
        requests: the stream, from its beginning each time.
    """

    requests: Callable[[], Iterator[Proto]]


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A page of a list, and the token of the next one (empty on the last)."""

    items: list[T]
    next_token: str


def tenant_name(tenant: str) -> str:
    """``tenants/{tenant}`` for an id; a full name stays as it is."""
    return tenant if "/" in tenant else f"tenants/{tenant}"


def adapter_name(tenant: str, adapter: str) -> str:
    """``tenants/{tenant}/adapters/{adapter}`` for an id; a full name stays as it is."""
    return adapter if "/" in adapter else f"{tenant_name(tenant)}/adapters/{adapter}"


def generate(
    tenant: str,
    prompt: Prompt,
    *,
    adapter: str,
    adapters: Mapping[str, float] | None,
    adapter_scale: float | None,
    raw: bool,
    max_tokens: int,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    min_p: float | None,
    seed: int | None,
    stop: Sequence[str],
    request_id: str,
    top_logprobs: int | None = None,
    route: str = "",
    sticky_key: str = "",
    json_schema: str | Mapping[str, Any] = "",
    tools: Sequence[chat.Tool] = (),
    tool_choice: str = "",
    one_tool_call: bool = False,
) -> Call[g.GenerationEvent | None]:
    """GenerationService.Generate."""
    # Another tenant's keeps its full name: it may be shared. The request is still this tenant's.
    own = f"{tenant_name(tenant)}/adapters/"
    blend = [
        generation_pb2.AdapterWeight(name=name.removeprefix(own), weight=weight)
        for name, weight in (adapters or {}).items()
    ]
    request = generation_pb2.GenerateRequest(
        parent=tenant_name(tenant),
        adapter=adapter.removeprefix(own),
        adapters=blend,
        adapter_scale=adapter_scale,
        sampling=generation_pb2.SamplingParams(
            temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed
        ),
        max_tokens=max_tokens,
        stop=[stop] if isinstance(stop, str) else stop,
        request_id=request_id,
        top_logprobs=top_logprobs,
        route=route,
        sticky_key=sticky_key,
        json_schema=json_schema if isinstance(json_schema, str) else json.dumps(dict(json_schema)),
        tools=[chat.tool_proto(tool) for tool in tools],
        one_tool_call=one_tool_call,
    )
    if tool_choice == "none":
        request.tool_choice = generation_pb2.TOOL_CHOICE_NONE
    elif tool_choice not in ("", "auto"):
        request.tool_choice = generation_pb2.TOOL_CHOICE_REQUIRED
        request.tool_name = "" if tool_choice == "required" else tool_choice
    if isinstance(prompt, str):
        if raw:
            request.raw_text = prompt
        else:
            request.prompt = prompt
    elif prompt and all(isinstance(item, int) for item in prompt):
        request.token_ids.ids.extend(cast("Sequence[int]", prompt))
    else:
        request.messages.messages.extend(_message(item) for item in prompt)
    return Call(
        "/optiq.v1.GenerationService/Generate",
        request,
        generation_pb2.GenerateResponse,
        convert.generation_event,
    )


def _message(item: object) -> generation_pb2.ChatMessage:
    if isinstance(item, chat.Message):
        return chat.message_proto(item)
    if isinstance(item, Mapping) and {"role", "content"} <= set(item):
        return generation_pb2.ChatMessage(role=item["role"], content=item["content"])
    raise TypeError(
        f"prompt must be text, token ids, or messages with 'role' and 'content'; found {type(item).__name__}"
    )


def _adapter(response: Any) -> t.Adapter:
    return convert.adapter(response.adapter)


def _nothing(response: Any) -> None:
    return None


def list_adapters(tenant: str, page_token: str) -> Call[Page[t.Adapter]]:
    """AdapterService.ListAdapters, one page."""
    return Call(
        "/optiq.v1.AdapterService/ListAdapters",
        adapter_pb2.ListAdaptersRequest(parent=tenant_name(tenant), page_size=PAGE_SIZE, page_token=page_token),
        adapter_pb2.ListAdaptersResponse,
        lambda r: Page([convert.adapter(a) for a in r.adapters], r.next_page_token),
    )


def get_adapter(tenant: str, adapter: str) -> Call[t.Adapter]:
    """AdapterService.GetAdapter."""
    request = adapter_pb2.GetAdapterRequest(name=adapter_name(tenant, adapter))
    return Call("/optiq.v1.AdapterService/GetAdapter", request, adapter_pb2.GetAdapterResponse, _adapter)


def import_adapter(tenant: str, adapter_id: str, source_path: str | Path) -> Call[t.Adapter]:
    """AdapterService.ImportAdapter; a relative path is taken from the caller's directory."""
    request = adapter_pb2.ImportAdapterRequest(
        parent=tenant_name(tenant), adapter_id=adapter_id, source_path=str(Path(source_path).absolute())
    )
    return Call("/optiq.v1.AdapterService/ImportAdapter", request, adapter_pb2.ImportAdapterResponse, _adapter)


def delete_adapter(tenant: str, adapter: str, etag: str) -> Call[None]:
    """AdapterService.DeleteAdapter."""
    request = adapter_pb2.DeleteAdapterRequest(name=adapter_name(tenant, adapter), etag=etag)
    return Call("/optiq.v1.AdapterService/DeleteAdapter", request, adapter_pb2.DeleteAdapterResponse, _nothing)


def load_adapter(tenant: str, adapter: str) -> Call[t.Adapter]:
    """AdapterService.LoadAdapter."""
    request = adapter_pb2.LoadAdapterRequest(name=adapter_name(tenant, adapter))
    return Call("/optiq.v1.AdapterService/LoadAdapter", request, adapter_pb2.LoadAdapterResponse, _adapter)


def unload_adapter(tenant: str, adapter: str) -> Call[t.Adapter]:
    """AdapterService.UnloadAdapter."""
    request = adapter_pb2.UnloadAdapterRequest(name=adapter_name(tenant, adapter))
    return Call("/optiq.v1.AdapterService/UnloadAdapter", request, adapter_pb2.UnloadAdapterResponse, _adapter)


def upload_adapter(tenant: str, adapter_id: str, folder: Path) -> Upload[t.Adapter]:
    """AdapterService.UploadAdapter."""
    header = adapter_pb2.UploadAdapterHeader(
        parent=tenant_name(tenant), adapter_id=adapter_id, files=transfer.describe(folder)
    )
    return Upload(
        "/optiq.v1.AdapterService/UploadAdapter",
        adapter_pb2.UploadAdapterRequest(header=header),
        adapter_pb2.UploadAdapterResponse,
        _adapter,
        lambda: transfer.chunks(folder, header),
    )


def export_adapter(tenant: str, adapter: str, version: str, form: str) -> Call[adapter_pb2.ExportAdapterResponse]:
    """AdapterService.ExportAdapter."""
    request = adapter_pb2.ExportAdapterRequest(name=adapter_name(tenant, adapter), version=version, format=form)
    return Call(
        "/optiq.v1.AdapterService/ExportAdapter", request, adapter_pb2.ExportAdapterResponse, lambda response: response
    )


def merge_adapters(tenant: str, adapter_id: str, parts: Mapping[str, float]) -> Call[t.Adapter]:
    """AdapterService.MergeAdapters."""
    request = adapter_pb2.MergeAdaptersRequest(
        parent=tenant_name(tenant),
        adapter_id=adapter_id,
        parts=[adapter_pb2.MergePart(adapter=adapter, weight=weight) for adapter, weight in parts.items()],
    )
    return Call("/optiq.v1.AdapterService/MergeAdapters", request, adapter_pb2.MergeAdaptersResponse, _adapter)


def set_keep_alive(tenant: str, adapter: str, seconds: float | None, etag: str) -> Call[t.Adapter]:
    """AdapterService.UpdateAdapter; None sets it back to the daemon's setting."""
    request = adapter_pb2.UpdateAdapterRequest(
        adapter=adapter_pb2.Adapter(name=adapter_name(tenant, adapter), etag=etag, keep_alive_seconds=seconds),
        update_mask=field_mask_pb2.FieldMask(paths=["keep_alive_seconds"]),
    )
    return Call("/optiq.v1.AdapterService/UpdateAdapter", request, adapter_pb2.UpdateAdapterResponse, _adapter)


def pin_adapter(tenant: str, adapter: str) -> Call[t.Adapter]:
    """AdapterService.PinAdapter."""
    request = adapter_pb2.PinAdapterRequest(name=adapter_name(tenant, adapter))
    return Call("/optiq.v1.AdapterService/PinAdapter", request, adapter_pb2.PinAdapterResponse, _adapter)


def unpin_adapter(tenant: str, adapter: str) -> Call[t.Adapter]:
    """AdapterService.UnpinAdapter."""
    request = adapter_pb2.UnpinAdapterRequest(name=adapter_name(tenant, adapter))
    return Call("/optiq.v1.AdapterService/UnpinAdapter", request, adapter_pb2.UnpinAdapterResponse, _adapter)


def list_versions(tenant: str, adapter: str, page_token: str) -> Call[Page[t.AdapterVersion]]:
    """AdapterService.ListAdapterVersions, one page."""
    return Call(
        "/optiq.v1.AdapterService/ListAdapterVersions",
        adapter_pb2.ListAdapterVersionsRequest(
            parent=adapter_name(tenant, adapter), page_size=PAGE_SIZE, page_token=page_token
        ),
        adapter_pb2.ListAdapterVersionsResponse,
        lambda r: Page([convert.adapter_version(v) for v in r.versions], r.next_page_token),
    )


def list_modules(tenant: str, adapter: str, page_token: str) -> Call[Page[t.AdapterModule]]:
    """AdapterService.ListAdapterModules, one page."""
    return Call(
        "/optiq.v1.AdapterService/ListAdapterModules",
        adapter_pb2.ListAdapterModulesRequest(
            parent=adapter_name(tenant, adapter), page_size=PAGE_SIZE, page_token=page_token
        ),
        adapter_pb2.ListAdapterModulesResponse,
        lambda r: Page([t.AdapterModule(m.path, m.rank, m.scale) for m in r.modules], r.next_page_token),
    )


def rollback_adapter(tenant: str, adapter: str, version: str, etag: str) -> Call[t.Adapter]:
    """AdapterService.RollbackAdapter."""
    request = adapter_pb2.RollbackAdapterRequest(name=adapter_name(tenant, adapter), version=version, etag=etag)
    return Call("/optiq.v1.AdapterService/RollbackAdapter", request, adapter_pb2.RollbackAdapterResponse, _adapter)


def watch_adapters(tenant: str) -> Call[t.AdapterChange]:
    """AdapterService.WatchAdapters."""
    return Call(
        "/optiq.v1.AdapterService/WatchAdapters",
        adapter_pb2.WatchAdaptersRequest(parent=tenant_name(tenant)),
        adapter_pb2.WatchAdaptersResponse,
        convert.adapter_change,
    )


def get_status() -> Call[t.Status]:
    """RuntimeService.GetStatus."""
    return Call(
        "/optiq.v1.RuntimeService/GetStatus",
        runtime_pb2.GetStatusRequest(),
        runtime_pb2.GetStatusResponse,
        lambda r: convert.status(r.status),
    )


def watch_telemetry(interval_ms: int) -> Call[t.Status]:
    """RuntimeService.WatchTelemetry."""
    return Call(
        "/optiq.v1.RuntimeService/WatchTelemetry",
        runtime_pb2.WatchTelemetryRequest(interval_ms=interval_ms),
        runtime_pb2.WatchTelemetryResponse,
        lambda r: convert.status(r.status),
    )


def watch_events(from_revision: int) -> Call[t.Event]:
    """EventService.WatchEvents."""
    return Call(
        "/optiq.v1.EventService/WatchEvents",
        event_pb2.WatchEventsRequest(from_revision=from_revision),
        event_pb2.WatchEventsResponse,
        lambda r: convert.event(r.event),
    )


def check_health(service: str) -> Call[states.HealthStatus]:
    """grpc.health.v1.Health.Check."""
    return Call(
        "/grpc.health.v1.Health/Check",
        health_pb2.HealthCheckRequest(service=service),
        health_pb2.HealthCheckResponse,
        lambda r: states.HealthStatus(health_pb2.HealthCheckResponse.ServingStatus.Name(r.status)),
    )
