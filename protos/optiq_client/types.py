"""What the client returns: frozen dataclasses, no protobuf in sight.

Bytes are bytes, durations are named by their unit, times are timezone-aware UTC and None where they have not
happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from optiq_client.generation_events import ServedAdapter
from optiq_client.jobs import AT_ONCE, PLAIN, JobGateResult, JobPublication, JobSchedule, JobWait
from optiq_client.states import AdapterState, ChangeType, EngineState, JobState, RankScaling


@dataclass(frozen=True, slots=True)
class QuarantineReason:
    """Why a folder is not served."""

    code: str
    message: str
    file: str
    tensor: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter name and the version that it points to."""

    name: str
    digest: str
    state: AdapterState
    quarantine: QuarantineReason | None
    format: str
    kind: str
    base_model: str
    module_count: int
    min_rank: int
    max_rank: int
    parameter_count: int
    targets: tuple[str, ...]
    disk_bytes: int
    resident_bytes: int
    active_leases: int
    create_time: datetime | None
    update_time: datetime | None
    source_path: str
    drop_to_routable_ms: float
    etag: str
    version: int = 0
    held_back_digest: str = ""
    pinned: bool = False
    keep_alive_seconds: float | None = None
    warning: str = ""
    last_use_time: datetime | None = None
    shared: bool = False

    @property
    def id(self) -> str:
        """Last component of the name."""
        return self.name.rpartition("/")[2]

    @property
    def tenant(self) -> str:
        """Tenant id of the name."""
        return self.name.split("/")[1] if self.name.count("/") >= 3 else ""


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """A version that a name keeps; ``origin`` is folder, import, upload, training or merge."""

    number: int
    digest: str
    current: bool
    origin: str
    create_time: datetime | None
    publish_time: datetime | None
    format: str
    kind: str
    min_rank: int
    max_rank: int
    parameter_count: int
    disk_bytes: int
    resident_bytes: int
    active_leases: int


@dataclass(frozen=True, slots=True)
class AdapterModule:
    """What an adapter changes in one module of the base; ``path`` is dotted, ``scale`` a factor on the product."""

    path: str
    rank: int
    scale: float


@dataclass(frozen=True, slots=True)
class AdapterChange:
    """One message of an adapter watch; ``adapter`` is None at LIST_END."""

    type: ChangeType
    adapter: Adapter | None


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """A training job's settings. Zero, empty and None mean the daemon's default (see training.proto).

    ``data_path`` is a folder on the daemon's machine with ``train.jsonl`` and optionally ``valid.jsonl``.
    """

    data_path: str = ""
    rank: int = 0
    rank_scaling: RankScaling = RankScaling.UNSPECIFIED
    scale: float = 0.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ()
    num_layers: int = 0
    iters: int = 0
    batch_size: int = 0
    learning_rate: float = 0.0
    max_seq_length: int = 0
    mask_prompt: bool | None = None
    seed: int = 0
    steps_per_report: int = 0
    steps_per_eval: int = 0
    steps_per_checkpoint: int = 0
    grad_checkpoint: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    budget_like: str = ""
    loss_chunk: int = 0
    optimizer: str = ""
    weight_decay: float = 0.0
    lr_schedule: str = ""
    lr_end: float = 0.0
    warmup_steps: int = 0
    clip_norm: float = 0.0
    patience: int = 0
    keep_best: bool = False
    method: str = ""
    rslora: bool = False
    loraplus_ratio: float = 0.0
    pack_length: int = 0
    micro_batch_size: int = 0
    objective: str = ""
    beta: float = 0.0
    qat_bits: int = 0
    retokenize: bool = False
    init: str = ""
    compute_dtype: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """One report of a running job."""

    step: int
    total_steps: int
    train_loss: float
    valid_loss: float | None
    tokens_per_second: float
    trained_tokens: int
    seconds_left: float
    peak_memory_bytes: int
    learning_rate: float


@dataclass(frozen=True, slots=True)
class TrainingAdvice:
    """A change that would make a run fit; ``time_ratio`` is the time per example relative to the run as asked."""

    text: str
    expected_bytes: int
    time_ratio: float


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What a run is predicted to take; ``bound_bytes`` has to fit into ``free_bytes``. A limit of 0 is none."""

    expected_bytes: int
    bound_bytes: int
    free_bytes: int
    base_bytes: int
    adapter_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    temporary_bytes: int
    live_buffers: int
    resource_limit: int
    fits: bool
    reasons: tuple[str, ...]
    advice: tuple[TrainingAdvice, ...]
    peak_at: str
    calibration_factor: float = 1.0
    calibration_margin: float = 0.0
    calibration_runs: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """A training job."""

    name: str
    state: JobState
    state_reason: str
    adapter_id: str
    config: TrainingConfig
    progress: Progress | None
    create_time: datetime | None
    start_time: datetime | None
    end_time: datetime | None
    adapter_digest: str
    attempts: int
    etag: str
    plan: TrainingPlan | None = None
    schedule: JobSchedule = AT_ONCE
    wait: JobWait | None = None
    reduced: str = ""
    publication: JobPublication = PLAIN
    gate_result: JobGateResult | None = None

    @property
    def id(self) -> str:
        """Last component of the name."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class JobUpdate:
    """One message of a job watch; ``progress`` is set where the message reports some."""

    job: Job
    progress: Progress | None


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of the daemon's log."""

    revision: int
    time: datetime | None
    type: str
    resource: str
    message: str
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Base:
    """The resident base."""

    model: str
    path: str
    digest: str
    memory_bytes: int
    bits_per_weight: float
    layer_count: int
    max_context: int


@dataclass(frozen=True, slots=True)
class Device:
    """How the device was set up, and why."""

    kind: str
    name: str
    compute: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Engine:
    """The engine process."""

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
    kv_budget_bytes: int = 0
    prefix_cache_bytes: int = 0
    prefix_cache_entries: int = 0
    prefix_hits: int = 0
    prefix_hit_tokens: int = 0
    adapter_budget_bytes: int = 0
    adapter_evictions: int = 0
    waiting_for_room: int = 0


@dataclass(frozen=True, slots=True)
class LiveRequest:
    """A request that is being served now; ``phase`` is queued, prefill or decode."""

    request_id: str
    tenant: str
    requested_adapter: str
    adapter_digest: str
    phase: str
    completion_tokens: int
    tokens_per_second: float
    time_to_first_token_ms: float
    start_time: datetime | None
    adapters: tuple[ServedAdapter, ...] = ()
    route: str = ""
    route_target: str = ""
    route_why: str = ""
    queue_position: int = 0


@dataclass(frozen=True, slots=True)
class Status:
    """What the daemon and its processes are doing now."""

    version: str
    pid: int
    start_time: datetime | None
    home_path: str
    adapters_path: str
    base: Base
    device: Device
    engine: Engine
    adapter_count: int
    quarantined_adapter_count: int
    queued_jobs: int
    running_job: str
    requests: tuple[LiveRequest, ...]
    process_memory_bytes: int
    memory_limit_bytes: int
    running_jobs: tuple[str, ...] = ()
