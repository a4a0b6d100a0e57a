from optiq_protos.v1 import generation_pb2 as _generation_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetBaseRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TargetModule(_message.Message):
    __slots__ = ("path", "input_dims", "output_dims", "kind", "experts")
    PATH_FIELD_NUMBER: _ClassVar[int]
    INPUT_DIMS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_DIMS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    path: str
    input_dims: int
    output_dims: int
    kind: str
    experts: int
    def __init__(self, path: _Optional[str] = ..., input_dims: _Optional[int] = ..., output_dims: _Optional[int] = ..., kind: _Optional[str] = ..., experts: _Optional[int] = ...) -> None: ...

class GetBaseResponse(_message.Message):
    __slots__ = ("path", "digest", "memory_bytes", "bits_per_weight", "layer_count", "max_context", "modules", "device_kind", "device_name", "compute", "notes")
    PATH_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    BITS_PER_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    LAYER_COUNT_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_KIND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NAME_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    path: str
    digest: str
    memory_bytes: int
    bits_per_weight: float
    layer_count: int
    max_context: int
    modules: _containers.RepeatedCompositeFieldContainer[TargetModule]
    device_kind: str
    device_name: str
    compute: str
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, path: _Optional[str] = ..., digest: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., bits_per_weight: _Optional[float] = ..., layer_count: _Optional[int] = ..., max_context: _Optional[int] = ..., modules: _Optional[_Iterable[_Union[TargetModule, _Mapping]]] = ..., device_kind: _Optional[str] = ..., device_name: _Optional[str] = ..., compute: _Optional[str] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class LoadAdapterRequest(_message.Message):
    __slots__ = ("digest", "path")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    digest: str
    path: str
    def __init__(self, digest: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...

class LoadAdapterResponse(_message.Message):
    __slots__ = ("resident_bytes",)
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    resident_bytes: int
    def __init__(self, resident_bytes: _Optional[int] = ...) -> None: ...

class UnloadAdapterRequest(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: str
    def __init__(self, digest: _Optional[str] = ...) -> None: ...

class UnloadAdapterResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MergedFolder(_message.Message):
    __slots__ = ("path", "weight")
    PATH_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    path: str
    weight: float
    def __init__(self, path: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...

class MergeAdaptersRequest(_message.Message):
    __slots__ = ("parts", "target_path")
    PARTS_FIELD_NUMBER: _ClassVar[int]
    TARGET_PATH_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedCompositeFieldContainer[MergedFolder]
    target_path: str
    def __init__(self, parts: _Optional[_Iterable[_Union[MergedFolder, _Mapping]]] = ..., target_path: _Optional[str] = ...) -> None: ...

class MergeAdaptersResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AdapterPart(_message.Message):
    __slots__ = ("digest", "weight")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    digest: str
    weight: float
    def __init__(self, digest: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...

class ProbeAdaptersRequest(_message.Message):
    __slots__ = ("digests",)
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    digests: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, digests: _Optional[_Iterable[str]] = ...) -> None: ...

class ProbeAdaptersResponse(_message.Message):
    __slots__ = ("differences",)
    class DifferencesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    differences: _containers.ScalarMap[str, float]
    def __init__(self, differences: _Optional[_Mapping[str, float]] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("request_id", "adapter_scale", "messages", "raw_text", "token_ids", "sampling", "max_tokens", "stop", "adapters", "cache_namespace", "top_logprobs", "json_schema", "tools", "tool_choice", "tool_name", "one_tool_call", "urgent")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_SCALE_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    RAW_TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    CACHE_NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CHOICE_FIELD_NUMBER: _ClassVar[int]
    TOOL_NAME_FIELD_NUMBER: _ClassVar[int]
    ONE_TOOL_CALL_FIELD_NUMBER: _ClassVar[int]
    URGENT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    adapter_scale: float
    messages: _generation_pb2.ChatMessages
    raw_text: str
    token_ids: _generation_pb2.TokenIds
    sampling: _generation_pb2.SamplingParams
    max_tokens: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    adapters: _containers.RepeatedCompositeFieldContainer[AdapterPart]
    cache_namespace: str
    top_logprobs: int
    json_schema: str
    tools: _containers.RepeatedCompositeFieldContainer[_generation_pb2.Tool]
    tool_choice: _generation_pb2.ToolChoice
    tool_name: str
    one_tool_call: bool
    urgent: bool
    def __init__(self, request_id: _Optional[str] = ..., adapter_scale: _Optional[float] = ..., messages: _Optional[_Union[_generation_pb2.ChatMessages, _Mapping]] = ..., raw_text: _Optional[str] = ..., token_ids: _Optional[_Union[_generation_pb2.TokenIds, _Mapping]] = ..., sampling: _Optional[_Union[_generation_pb2.SamplingParams, _Mapping]] = ..., max_tokens: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., adapters: _Optional[_Iterable[_Union[AdapterPart, _Mapping]]] = ..., cache_namespace: _Optional[str] = ..., top_logprobs: _Optional[int] = ..., json_schema: _Optional[str] = ..., tools: _Optional[_Iterable[_Union[_generation_pb2.Tool, _Mapping]]] = ..., tool_choice: _Optional[_Union[_generation_pb2.ToolChoice, str]] = ..., tool_name: _Optional[str] = ..., one_tool_call: _Optional[bool] = ..., urgent: _Optional[bool] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("queued", "started", "chunk", "finished")
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    queued: _generation_pb2.Queued
    started: _generation_pb2.Started
    chunk: _generation_pb2.Chunk
    finished: _generation_pb2.Finished
    def __init__(self, queued: _Optional[_Union[_generation_pb2.Queued, _Mapping]] = ..., started: _Optional[_Union[_generation_pb2.Started, _Mapping]] = ..., chunk: _Optional[_Union[_generation_pb2.Chunk, _Mapping]] = ..., finished: _Optional[_Union[_generation_pb2.Finished, _Mapping]] = ...) -> None: ...

class StreamRequest(_message.Message):
    __slots__ = ("generate", "cancel")
    GENERATE_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    generate: GenerateRequest
    cancel: str
    def __init__(self, generate: _Optional[_Union[GenerateRequest, _Mapping]] = ..., cancel: _Optional[str] = ...) -> None: ...

class StreamEvent(_message.Message):
    __slots__ = ("request_id", "response", "failed_status")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    FAILED_STATUS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    response: GenerateResponse
    failed_status: bytes
    def __init__(self, request_id: _Optional[str] = ..., response: _Optional[_Union[GenerateResponse, _Mapping]] = ..., failed_status: _Optional[bytes] = ...) -> None: ...

class StreamStep(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[StreamEvent]
    def __init__(self, events: _Optional[_Iterable[_Union[StreamEvent, _Mapping]]] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("active_rows", "queued_requests", "resident_adapters", "adapter_bytes", "kv_cache_bytes", "active_memory_bytes", "peak_memory_bytes", "tokens_per_second", "generated_tokens", "max_adapters_in_one_step", "kv_cache", "kv_bytes_per_token", "kv_budget_bytes", "prefix_cache_bytes", "prefix_cache_entries", "prefix_hits", "prefix_hit_tokens")
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
    def __init__(self, active_rows: _Optional[int] = ..., queued_requests: _Optional[int] = ..., resident_adapters: _Optional[int] = ..., adapter_bytes: _Optional[int] = ..., kv_cache_bytes: _Optional[int] = ..., active_memory_bytes: _Optional[int] = ..., peak_memory_bytes: _Optional[int] = ..., tokens_per_second: _Optional[float] = ..., generated_tokens: _Optional[int] = ..., max_adapters_in_one_step: _Optional[int] = ..., kv_cache: _Optional[str] = ..., kv_bytes_per_token: _Optional[float] = ..., kv_budget_bytes: _Optional[int] = ..., prefix_cache_bytes: _Optional[int] = ..., prefix_cache_entries: _Optional[int] = ..., prefix_hits: _Optional[int] = ..., prefix_hit_tokens: _Optional[int] = ...) -> None: ...
