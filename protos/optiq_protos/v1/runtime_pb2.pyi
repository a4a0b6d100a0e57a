import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from optiq_protos.v1 import generation_pb2 as _generation_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EngineState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENGINE_STATE_UNSPECIFIED: _ClassVar[EngineState]
    ENGINE_STATE_STARTING: _ClassVar[EngineState]
    ENGINE_STATE_SERVING: _ClassVar[EngineState]
    ENGINE_STATE_RESTARTING: _ClassVar[EngineState]
    ENGINE_STATE_FAILED: _ClassVar[EngineState]
ENGINE_STATE_UNSPECIFIED: EngineState
ENGINE_STATE_STARTING: EngineState
ENGINE_STATE_SERVING: EngineState
ENGINE_STATE_RESTARTING: EngineState
ENGINE_STATE_FAILED: EngineState

class BaseStatus(_message.Message):
    __slots__ = ("model", "path", "digest", "memory_bytes", "bits_per_weight", "layer_count", "max_context")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    BITS_PER_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    LAYER_COUNT_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    model: str
    path: str
    digest: str
    memory_bytes: int
    bits_per_weight: float
    layer_count: int
    max_context: int
    def __init__(self, model: _Optional[str] = ..., path: _Optional[str] = ..., digest: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., bits_per_weight: _Optional[float] = ..., layer_count: _Optional[int] = ..., max_context: _Optional[int] = ...) -> None: ...

class DeviceStatus(_message.Message):
    __slots__ = ("kind", "name", "compute", "notes")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    compute: str
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ..., compute: _Optional[str] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class EngineStatus(_message.Message):
    __slots__ = ("state", "message", "pid", "restarts", "active_rows", "queued_requests", "resident_adapters", "adapter_bytes", "kv_cache_bytes", "active_memory_bytes", "peak_memory_bytes", "tokens_per_second", "generated_tokens", "max_adapters_in_one_step", "kv_cache", "kv_bytes_per_token", "kv_budget_bytes", "prefix_cache_bytes", "prefix_cache_entries", "prefix_hits", "prefix_hit_tokens", "adapter_budget_bytes", "adapter_evictions", "waiting_for_room")
    STATE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_ROWS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_ADAPTERS_IN_ONE_STEP_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    KV_BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    PREFIX_CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PREFIX_CACHE_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HITS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_ROOM_FIELD_NUMBER: _ClassVar[int]
    state: EngineState
    message: str
    pid: int
    restarts: int
    active_rows: int
    queued_requests: int
    resident_adapters: int
    adapter_bytes: int
    kv_cache_bytes: int
    active_memory_bytes: int
    peak_memory_bytes: int
    tokens_per_second: float
    generated_tokens: int
    max_adapters_in_one_step: int
    kv_cache: str
    kv_bytes_per_token: float
    kv_budget_bytes: int
    prefix_cache_bytes: int
    prefix_cache_entries: int
    prefix_hits: int
    prefix_hit_tokens: int
    adapter_budget_bytes: int
    adapter_evictions: int
    waiting_for_room: int
    def __init__(self, state: _Optional[_Union[EngineState, str]] = ..., message: _Optional[str] = ..., pid: _Optional[int] = ..., restarts: _Optional[int] = ..., active_rows: _Optional[int] = ..., queued_requests: _Optional[int] = ..., resident_adapters: _Optional[int] = ..., adapter_bytes: _Optional[int] = ..., kv_cache_bytes: _Optional[int] = ..., active_memory_bytes: _Optional[int] = ..., peak_memory_bytes: _Optional[int] = ..., tokens_per_second: _Optional[float] = ..., generated_tokens: _Optional[int] = ..., max_adapters_in_one_step: _Optional[int] = ..., kv_cache: _Optional[str] = ..., kv_bytes_per_token: _Optional[float] = ..., kv_budget_bytes: _Optional[int] = ..., prefix_cache_bytes: _Optional[int] = ..., prefix_cache_entries: _Optional[int] = ..., prefix_hits: _Optional[int] = ..., prefix_hit_tokens: _Optional[int] = ..., adapter_budget_bytes: _Optional[int] = ..., adapter_evictions: _Optional[int] = ..., waiting_for_room: _Optional[int] = ...) -> None: ...

class LiveRequest(_message.Message):
    __slots__ = ("request_id", "tenant", "requested_adapter", "adapter_digest", "phase", "completion_tokens", "tokens_per_second", "time_to_first_token_ms", "start_time", "adapters", "route", "route_target", "route_why", "queue_position")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    REQUESTED_ADAPTER_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    TIME_TO_FIRST_TOKEN_MS_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    ROUTE_TARGET_FIELD_NUMBER: _ClassVar[int]
    ROUTE_WHY_FIELD_NUMBER: _ClassVar[int]
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    tenant: str
    requested_adapter: str
    adapter_digest: str
    phase: str
    completion_tokens: int
    tokens_per_second: float
    time_to_first_token_ms: float
    start_time: _timestamp_pb2.Timestamp
    adapters: _containers.RepeatedCompositeFieldContainer[_generation_pb2.ServedAdapter]
    route: str
    route_target: str
    route_why: str
    queue_position: int
    def __init__(self, request_id: _Optional[str] = ..., tenant: _Optional[str] = ..., requested_adapter: _Optional[str] = ..., adapter_digest: _Optional[str] = ..., phase: _Optional[str] = ..., completion_tokens: _Optional[int] = ..., tokens_per_second: _Optional[float] = ..., time_to_first_token_ms: _Optional[float] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., adapters: _Optional[_Iterable[_Union[_generation_pb2.ServedAdapter, _Mapping]]] = ..., route: _Optional[str] = ..., route_target: _Optional[str] = ..., route_why: _Optional[str] = ..., queue_position: _Optional[int] = ...) -> None: ...

class RuntimeStatus(_message.Message):
    __slots__ = ("version", "pid", "start_time", "home_path", "adapters_path", "base", "device", "engine", "adapter_count", "quarantined_adapter_count", "queued_jobs", "running_job", "requests", "process_memory_bytes", "memory_limit_bytes", "running_jobs")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    HOME_PATH_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_PATH_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_COUNT_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_ADAPTER_COUNT_FIELD_NUMBER: _ClassVar[int]
    QUEUED_JOBS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_JOB_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    PROCESS_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    RUNNING_JOBS_FIELD_NUMBER: _ClassVar[int]
    version: str
    pid: int
    start_time: _timestamp_pb2.Timestamp
    home_path: str
    adapters_path: str
    base: BaseStatus
    device: DeviceStatus
    engine: EngineStatus
    adapter_count: int
    quarantined_adapter_count: int
    queued_jobs: int
    running_job: str
    requests: _containers.RepeatedCompositeFieldContainer[LiveRequest]
    process_memory_bytes: int
    memory_limit_bytes: int
    running_jobs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[str] = ..., pid: _Optional[int] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., home_path: _Optional[str] = ..., adapters_path: _Optional[str] = ..., base: _Optional[_Union[BaseStatus, _Mapping]] = ..., device: _Optional[_Union[DeviceStatus, _Mapping]] = ..., engine: _Optional[_Union[EngineStatus, _Mapping]] = ..., adapter_count: _Optional[int] = ..., quarantined_adapter_count: _Optional[int] = ..., queued_jobs: _Optional[int] = ..., running_job: _Optional[str] = ..., requests: _Optional[_Iterable[_Union[LiveRequest, _Mapping]]] = ..., process_memory_bytes: _Optional[int] = ..., memory_limit_bytes: _Optional[int] = ..., running_jobs: _Optional[_Iterable[str]] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: RuntimeStatus
    def __init__(self, status: _Optional[_Union[RuntimeStatus, _Mapping]] = ...) -> None: ...

class WatchTelemetryRequest(_message.Message):
    __slots__ = ("interval_ms",)
    INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    interval_ms: int
    def __init__(self, interval_ms: _Optional[int] = ...) -> None: ...

class WatchTelemetryResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: RuntimeStatus
    def __init__(self, status: _Optional[_Union[RuntimeStatus, _Mapping]] = ...) -> None: ...
