"""Protobuf messages to the client's types, and back where a type is sent. The only module that knows both."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from optiq_client import generation_events as g
from optiq_client import states
from optiq_client import types as t
from optiq_client.chat import tool_call
from optiq_protos.v1 import adapter_pb2, event_pb2, generation_pb2, runtime_pb2

E = TypeVar("E", bound=StrEnum)


def _enum(kind: type[E], wrapper: Any, value: int, prefix: str) -> E:
    """The member named like the wire's value; UNSPECIFIED for one that a newer daemon added."""
    name = wrapper.Name(value).removeprefix(prefix) if value in wrapper.values() else "UNSPECIFIED"
    return kind[name] if name in kind.__members__ else kind["UNSPECIFIED"]


def _time(stamp: Timestamp) -> datetime | None:
    return stamp.ToDatetime(tzinfo=UTC) if stamp.seconds or stamp.nanos else None


def _optional_time(message: Any, name: str) -> datetime | None:
    return _time(getattr(message, name)) if message.HasField(name) else None


def _logprob(told: generation_pb2.TokenLogprob) -> g.TokenLogprob:
    top = tuple(g.TokenLogprob(one.id, one.text, one.logprob) for one in told.top)
    return g.TokenLogprob(told.id, told.text, told.logprob, top)


def generation_event(response: generation_pb2.GenerateResponse) -> g.GenerationEvent | None:
    """The event of one stream message; None for a kind that this client does not know."""
    kind = response.WhichOneof("event")
    if kind == "chunk":
        told = tuple(_logprob(one) for one in response.chunk.logprobs)
        calls = tuple(tool_call(call) for call in response.chunk.tool_calls)
        return g.Chunk(response.chunk.text, tuple(response.chunk.token_ids), told, calls)
    if kind == "queued":
        return g.Queued(response.queued.position)
    if kind == "started":
        s = response.started
        return g.Started(
            request_id=s.request_id,
            adapter=s.adapter,
            adapter_digest=s.adapter_digest,
            prompt_tokens=s.prompt_tokens,
            cached_tokens=s.cached_tokens,
            adapters=_served(s.adapters),
            route=s.route,
            route_why=s.route_why,
        )
    if kind == "finished":
        f = response.finished
        u, m, b = f.usage, f.timings, f.batch
        return g.Finished(
            reason=_enum(states.FinishReason, generation_pb2.FinishReason, f.reason, "FINISH_REASON_"),
            usage=g.Usage(u.prompt_tokens, u.completion_tokens, u.cached_tokens),
            timings=g.Timings(m.queue_ms, m.prefill_ms, m.time_to_first_token_ms, m.decode_ms, m.tokens_per_second),
            batch=g.BatchStats(b.max_rows, b.max_adapters, b.steps),
        )
    return None


def adapter(message: adapter_pb2.Adapter) -> t.Adapter:
    """An adapter."""
    q = message.quarantine
    return t.Adapter(
        name=message.name,
        digest=message.digest,
        state=_enum(states.AdapterState, adapter_pb2.AdapterState, message.state, "ADAPTER_STATE_"),
        quarantine=t.QuarantineReason(q.code, q.message, q.file, q.tensor, q.expected, q.found)
        if message.HasField("quarantine")
        else None,
        format=message.format,
        kind=message.kind,
        base_model=message.base_model,
        module_count=message.module_count,
        min_rank=message.min_rank,
        max_rank=message.max_rank,
        parameter_count=message.parameter_count,
        targets=tuple(message.targets),
        disk_bytes=message.disk_bytes,
        resident_bytes=message.resident_bytes,
        active_leases=message.active_leases,
        create_time=_optional_time(message, "create_time"),
        update_time=_optional_time(message, "update_time"),
        source_path=message.source_path,
        drop_to_routable_ms=message.drop_to_routable_ms,
        etag=message.etag,
        version=message.version,
        held_back_digest=message.held_back_digest,
        pinned=message.pinned,
        keep_alive_seconds=message.keep_alive_seconds if message.HasField("keep_alive_seconds") else None,
        warning=message.warning,
        last_use_time=_optional_time(message, "last_use_time"),
        shared=message.shared,
    )


def adapter_version(message: adapter_pb2.AdapterVersion) -> t.AdapterVersion:
    """A version that a name keeps."""
    return t.AdapterVersion(
        number=message.number,
        digest=message.digest,
        current=message.current,
        origin=message.origin,
        create_time=_optional_time(message, "create_time"),
        publish_time=_optional_time(message, "publish_time"),
        format=message.format,
        kind=message.kind,
        min_rank=message.min_rank,
        max_rank=message.max_rank,
        parameter_count=message.parameter_count,
        disk_bytes=message.disk_bytes,
        resident_bytes=message.resident_bytes,
        active_leases=message.active_leases,
    )


def adapter_change(response: adapter_pb2.WatchAdaptersResponse) -> t.AdapterChange:
    """One message of an adapter watch."""
    kind = _enum(states.ChangeType, adapter_pb2.WatchAdaptersResponse.ChangeType, response.type, "CHANGE_TYPE_")
    return t.AdapterChange(kind, adapter(response.adapter) if response.HasField("adapter") else None)


def event(message: event_pb2.Event) -> t.Event:
    """One entry of the daemon's log."""
    return t.Event(
        revision=message.revision,
        time=_optional_time(message, "time"),
        type=message.type,
        resource=message.resource,
        message=message.message,
        fields=dict(message.fields),
    )


def status(message: runtime_pb2.RuntimeStatus) -> t.Status:
    """What the daemon and its processes are doing now."""
    return t.Status(
        version=message.version,
        pid=message.pid,
        start_time=_optional_time(message, "start_time"),
        home_path=message.home_path,
        adapters_path=message.adapters_path,
        base=_base(message.base),
        device=_device(message.device),
        engine=_engine(message.engine),
        adapter_count=message.adapter_count,
        quarantined_adapter_count=message.quarantined_adapter_count,
        queued_jobs=message.queued_jobs,
        running_job=message.running_job,
        requests=tuple(_live_request(r) for r in message.requests),
        process_memory_bytes=message.process_memory_bytes,
        memory_limit_bytes=message.memory_limit_bytes,
        running_jobs=tuple(message.running_jobs),
    )


def _base(m: runtime_pb2.BaseStatus) -> t.Base:
    return t.Base(
        model=m.model,
        path=m.path,
        digest=m.digest,
        memory_bytes=m.memory_bytes,
        bits_per_weight=m.bits_per_weight,
        layer_count=m.layer_count,
        max_context=m.max_context,
    )


def _device(m: runtime_pb2.DeviceStatus) -> t.Device:
    return t.Device(m.kind, m.name, m.compute, tuple(m.notes))


def _engine(m: runtime_pb2.EngineStatus) -> t.Engine:
    return t.Engine(
        state=_enum(states.EngineState, runtime_pb2.EngineState, m.state, "ENGINE_STATE_"),
        message=m.message,
        pid=m.pid,
        restarts=m.restarts,
        active_rows=m.active_rows,
        queued_requests=m.queued_requests,
        resident_adapters=m.resident_adapters,
        adapter_bytes=m.adapter_bytes,
        kv_cache_bytes=m.kv_cache_bytes,
        active_memory_bytes=m.active_memory_bytes,
        peak_memory_bytes=m.peak_memory_bytes,
        tokens_per_second=m.tokens_per_second,
        generated_tokens=m.generated_tokens,
        max_adapters_in_one_step=m.max_adapters_in_one_step,
        kv_cache=m.kv_cache,
        kv_bytes_per_token=m.kv_bytes_per_token,
        kv_budget_bytes=m.kv_budget_bytes,
        prefix_cache_bytes=m.prefix_cache_bytes,
        prefix_cache_entries=m.prefix_cache_entries,
        prefix_hits=m.prefix_hits,
        prefix_hit_tokens=m.prefix_hit_tokens,
        adapter_budget_bytes=m.adapter_budget_bytes,
        adapter_evictions=m.adapter_evictions,
        waiting_for_room=m.waiting_for_room,
    )


def _live_request(m: runtime_pb2.LiveRequest) -> t.LiveRequest:
    return t.LiveRequest(
        request_id=m.request_id,
        tenant=m.tenant,
        requested_adapter=m.requested_adapter,
        adapter_digest=m.adapter_digest,
        phase=m.phase,
        completion_tokens=m.completion_tokens,
        tokens_per_second=m.tokens_per_second,
        time_to_first_token_ms=m.time_to_first_token_ms,
        start_time=_optional_time(m, "start_time"),
        adapters=_served(m.adapters),
        route=m.route,
        route_target=m.route_target,
        route_why=m.route_why,
        queue_position=m.queue_position,
    )


def _served(parts: Iterable[generation_pb2.ServedAdapter]) -> tuple[g.ServedAdapter, ...]:
    return tuple(g.ServedAdapter(part.name, part.digest, part.weight) for part in parts)
