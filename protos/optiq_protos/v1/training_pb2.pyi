import datetime

from google.protobuf import field_mask_pb2 as _field_mask_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from optiq_protos.v1 import training_queue_pb2 as _training_queue_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_QUEUED: _ClassVar[JobState]
    JOB_STATE_PLANNING: _ClassVar[JobState]
    JOB_STATE_WAITING: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_PAUSED: _ClassVar[JobState]
    JOB_STATE_SUCCEEDED: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]
    JOB_STATE_REFUSED: _ClassVar[JobState]

class RankScaling(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RANK_SCALING_UNSPECIFIED: _ClassVar[RankScaling]
    RANK_SCALING_CONSTANT: _ClassVar[RankScaling]
    RANK_SCALING_BY_BITS: _ClassVar[RankScaling]
    RANK_SCALING_BY_KL: _ClassVar[RankScaling]
    RANK_SCALING_LINEAR: _ClassVar[RankScaling]
    RANK_SCALING_ATTENTION: _ClassVar[RankScaling]
    RANK_SCALING_FFN: _ClassVar[RankScaling]
    RANK_SCALING_GRADIENT: _ClassVar[RankScaling]
    RANK_SCALING_PATTERN: _ClassVar[RankScaling]
    RANK_SCALING_ADALORA: _ClassVar[RankScaling]
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_QUEUED: JobState
JOB_STATE_PLANNING: JobState
JOB_STATE_WAITING: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_PAUSED: JobState
JOB_STATE_SUCCEEDED: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_CANCELLED: JobState
JOB_STATE_REFUSED: JobState
RANK_SCALING_UNSPECIFIED: RankScaling
RANK_SCALING_CONSTANT: RankScaling
RANK_SCALING_BY_BITS: RankScaling
RANK_SCALING_BY_KL: RankScaling
RANK_SCALING_LINEAR: RankScaling
RANK_SCALING_ATTENTION: RankScaling
RANK_SCALING_FFN: RankScaling
RANK_SCALING_GRADIENT: RankScaling
RANK_SCALING_PATTERN: RankScaling
RANK_SCALING_ADALORA: RankScaling

class TrainingConfig(_message.Message):
    __slots__ = ("data_path", "rank", "rank_scaling", "scale", "dropout", "target_modules", "num_layers", "iters", "batch_size", "learning_rate", "max_seq_length", "mask_prompt", "seed", "steps_per_report", "steps_per_eval", "steps_per_checkpoint", "grad_checkpoint", "rank_pattern", "budget_like", "loss_chunk", "optimizer", "weight_decay", "lr_schedule", "lr_end", "warmup_steps", "clip_norm", "patience", "keep_best", "method", "rslora", "loraplus_ratio", "pack_length", "micro_batch_size", "objective", "beta", "qat_bits", "retokenize", "init", "compute_dtype")
    class RankPatternEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    DATA_PATH_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    RANK_SCALING_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    DROPOUT_FIELD_NUMBER: _ClassVar[int]
    TARGET_MODULES_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    ITERS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQ_LENGTH_FIELD_NUMBER: _ClassVar[int]
    MASK_PROMPT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STEPS_PER_REPORT_FIELD_NUMBER: _ClassVar[int]
    STEPS_PER_EVAL_FIELD_NUMBER: _ClassVar[int]
    STEPS_PER_CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    GRAD_CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    RANK_PATTERN_FIELD_NUMBER: _ClassVar[int]
    BUDGET_LIKE_FIELD_NUMBER: _ClassVar[int]
    LOSS_CHUNK_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    LR_SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    LR_END_FIELD_NUMBER: _ClassVar[int]
    WARMUP_STEPS_FIELD_NUMBER: _ClassVar[int]
    CLIP_NORM_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_FIELD_NUMBER: _ClassVar[int]
    KEEP_BEST_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    RSLORA_FIELD_NUMBER: _ClassVar[int]
    LORAPLUS_RATIO_FIELD_NUMBER: _ClassVar[int]
    PACK_LENGTH_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    BETA_FIELD_NUMBER: _ClassVar[int]
    QAT_BITS_FIELD_NUMBER: _ClassVar[int]
    RETOKENIZE_FIELD_NUMBER: _ClassVar[int]
    INIT_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    data_path: str
    rank: int
    rank_scaling: RankScaling
    scale: float
    dropout: float
    target_modules: _containers.RepeatedScalarFieldContainer[str]
    num_layers: int
    iters: int
    batch_size: int
    learning_rate: float
    max_seq_length: int
    mask_prompt: bool
    seed: int
    steps_per_report: int
    steps_per_eval: int
    steps_per_checkpoint: int
    grad_checkpoint: bool
    rank_pattern: _containers.ScalarMap[str, int]
    budget_like: str
    loss_chunk: int
    optimizer: str
    weight_decay: float
    lr_schedule: str
    lr_end: float
    warmup_steps: int
    clip_norm: float
    patience: int
    keep_best: bool
    method: str
    rslora: bool
    loraplus_ratio: float
    pack_length: int
    micro_batch_size: int
    objective: str
    beta: float
    qat_bits: int
    retokenize: bool
    init: str
    compute_dtype: str
    def __init__(self, data_path: _Optional[str] = ..., rank: _Optional[int] = ..., rank_scaling: _Optional[_Union[RankScaling, str]] = ..., scale: _Optional[float] = ..., dropout: _Optional[float] = ..., target_modules: _Optional[_Iterable[str]] = ..., num_layers: _Optional[int] = ..., iters: _Optional[int] = ..., batch_size: _Optional[int] = ..., learning_rate: _Optional[float] = ..., max_seq_length: _Optional[int] = ..., mask_prompt: _Optional[bool] = ..., seed: _Optional[int] = ..., steps_per_report: _Optional[int] = ..., steps_per_eval: _Optional[int] = ..., steps_per_checkpoint: _Optional[int] = ..., grad_checkpoint: _Optional[bool] = ..., rank_pattern: _Optional[_Mapping[str, int]] = ..., budget_like: _Optional[str] = ..., loss_chunk: _Optional[int] = ..., optimizer: _Optional[str] = ..., weight_decay: _Optional[float] = ..., lr_schedule: _Optional[str] = ..., lr_end: _Optional[float] = ..., warmup_steps: _Optional[int] = ..., clip_norm: _Optional[float] = ..., patience: _Optional[int] = ..., keep_best: _Optional[bool] = ..., method: _Optional[str] = ..., rslora: _Optional[bool] = ..., loraplus_ratio: _Optional[float] = ..., pack_length: _Optional[int] = ..., micro_batch_size: _Optional[int] = ..., objective: _Optional[str] = ..., beta: _Optional[float] = ..., qat_bits: _Optional[int] = ..., retokenize: _Optional[bool] = ..., init: _Optional[str] = ..., compute_dtype: _Optional[str] = ...) -> None: ...

class TrainingProgress(_message.Message):
    __slots__ = ("step", "total_steps", "train_loss", "valid_loss", "tokens_per_second", "trained_tokens", "seconds_left", "peak_memory_bytes", "learning_rate")
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_LOSS_FIELD_NUMBER: _ClassVar[int]
    VALID_LOSS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    TRAINED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    step: int
    total_steps: int
    train_loss: float
    valid_loss: float
    tokens_per_second: float
    trained_tokens: int
    seconds_left: float
    peak_memory_bytes: int
    learning_rate: float
    def __init__(self, step: _Optional[int] = ..., total_steps: _Optional[int] = ..., train_loss: _Optional[float] = ..., valid_loss: _Optional[float] = ..., tokens_per_second: _Optional[float] = ..., trained_tokens: _Optional[int] = ..., seconds_left: _Optional[float] = ..., peak_memory_bytes: _Optional[int] = ..., learning_rate: _Optional[float] = ...) -> None: ...

class TrainingPlan(_message.Message):
    __slots__ = ("expected_bytes", "bound_bytes", "free_bytes", "base_bytes", "adapter_bytes", "optimizer_bytes", "activation_bytes", "temporary_bytes", "live_buffers", "resource_limit", "fits", "reasons", "advice", "peak_at", "calibration_factor", "calibration_margin", "calibration_runs", "notes")
    EXPECTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    BOUND_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    BASE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_BYTES_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_BYTES_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_BYTES_FIELD_NUMBER: _ClassVar[int]
    TEMPORARY_BYTES_FIELD_NUMBER: _ClassVar[int]
    LIVE_BUFFERS_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_LIMIT_FIELD_NUMBER: _ClassVar[int]
    FITS_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    PEAK_AT_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FACTOR_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_MARGIN_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_RUNS_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
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
    reasons: _containers.RepeatedScalarFieldContainer[str]
    advice: _containers.RepeatedCompositeFieldContainer[TrainingAdvice]
    peak_at: str
    calibration_factor: float
    calibration_margin: float
    calibration_runs: int
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, expected_bytes: _Optional[int] = ..., bound_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., base_bytes: _Optional[int] = ..., adapter_bytes: _Optional[int] = ..., optimizer_bytes: _Optional[int] = ..., activation_bytes: _Optional[int] = ..., temporary_bytes: _Optional[int] = ..., live_buffers: _Optional[int] = ..., resource_limit: _Optional[int] = ..., fits: _Optional[bool] = ..., reasons: _Optional[_Iterable[str]] = ..., advice: _Optional[_Iterable[_Union[TrainingAdvice, _Mapping]]] = ..., peak_at: _Optional[str] = ..., calibration_factor: _Optional[float] = ..., calibration_margin: _Optional[float] = ..., calibration_runs: _Optional[int] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class TrainingAdvice(_message.Message):
    __slots__ = ("text", "expected_bytes", "time_ratio")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TIME_RATIO_FIELD_NUMBER: _ClassVar[int]
    text: str
    expected_bytes: int
    time_ratio: float
    def __init__(self, text: _Optional[str] = ..., expected_bytes: _Optional[int] = ..., time_ratio: _Optional[float] = ...) -> None: ...

class TrainingJob(_message.Message):
    __slots__ = ("name", "state", "state_reason", "adapter_id", "config", "progress", "create_time", "start_time", "end_time", "adapter_digest", "attempts", "etag", "plan", "schedule", "wait", "reduced", "publication", "gate_result")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STATE_REASON_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    REDUCED_FIELD_NUMBER: _ClassVar[int]
    PUBLICATION_FIELD_NUMBER: _ClassVar[int]
    GATE_RESULT_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: JobState
    state_reason: str
    adapter_id: str
    config: TrainingConfig
    progress: TrainingProgress
    create_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    adapter_digest: str
    attempts: int
    etag: str
    plan: TrainingPlan
    schedule: _training_queue_pb2.JobSchedule
    wait: _training_queue_pb2.JobWait
    reduced: str
    publication: _training_queue_pb2.JobPublication
    gate_result: _training_queue_pb2.JobGateResult
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ..., state_reason: _Optional[str] = ..., adapter_id: _Optional[str] = ..., config: _Optional[_Union[TrainingConfig, _Mapping]] = ..., progress: _Optional[_Union[TrainingProgress, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., adapter_digest: _Optional[str] = ..., attempts: _Optional[int] = ..., etag: _Optional[str] = ..., plan: _Optional[_Union[TrainingPlan, _Mapping]] = ..., schedule: _Optional[_Union[_training_queue_pb2.JobSchedule, _Mapping]] = ..., wait: _Optional[_Union[_training_queue_pb2.JobWait, _Mapping]] = ..., reduced: _Optional[str] = ..., publication: _Optional[_Union[_training_queue_pb2.JobPublication, _Mapping]] = ..., gate_result: _Optional[_Union[_training_queue_pb2.JobGateResult, _Mapping]] = ...) -> None: ...

class CreateTrainingJobRequest(_message.Message):
    __slots__ = ("parent", "adapter_id", "config", "request_id", "schedule", "publication")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    PUBLICATION_FIELD_NUMBER: _ClassVar[int]
    parent: str
    adapter_id: str
    config: TrainingConfig
    request_id: str
    schedule: _training_queue_pb2.JobSchedule
    publication: _training_queue_pb2.JobPublication
    def __init__(self, parent: _Optional[str] = ..., adapter_id: _Optional[str] = ..., config: _Optional[_Union[TrainingConfig, _Mapping]] = ..., request_id: _Optional[str] = ..., schedule: _Optional[_Union[_training_queue_pb2.JobSchedule, _Mapping]] = ..., publication: _Optional[_Union[_training_queue_pb2.JobPublication, _Mapping]] = ...) -> None: ...

class CreateTrainingJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: TrainingJob
    def __init__(self, job: _Optional[_Union[TrainingJob, _Mapping]] = ...) -> None: ...

class PlanTrainingJobRequest(_message.Message):
    __slots__ = ("parent", "config")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    parent: str
    config: TrainingConfig
    def __init__(self, parent: _Optional[str] = ..., config: _Optional[_Union[TrainingConfig, _Mapping]] = ...) -> None: ...

class PlanTrainingJobResponse(_message.Message):
    __slots__ = ("plan",)
    PLAN_FIELD_NUMBER: _ClassVar[int]
    plan: TrainingPlan
    def __init__(self, plan: _Optional[_Union[TrainingPlan, _Mapping]] = ...) -> None: ...

class GetTrainingJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetTrainingJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: TrainingJob
    def __init__(self, job: _Optional[_Union[TrainingJob, _Mapping]] = ...) -> None: ...

class ListTrainingJobsRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListTrainingJobsResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[TrainingJob]
    next_page_token: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[TrainingJob, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelTrainingJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class CancelTrainingJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: TrainingJob
    def __init__(self, job: _Optional[_Union[TrainingJob, _Mapping]] = ...) -> None: ...

class UpdateTrainingJobRequest(_message.Message):
    __slots__ = ("job", "update_mask")
    JOB_FIELD_NUMBER: _ClassVar[int]
    UPDATE_MASK_FIELD_NUMBER: _ClassVar[int]
    job: TrainingJob
    update_mask: _field_mask_pb2.FieldMask
    def __init__(self, job: _Optional[_Union[TrainingJob, _Mapping]] = ..., update_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ...) -> None: ...

class UpdateTrainingJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: TrainingJob
    def __init__(self, job: _Optional[_Union[TrainingJob, _Mapping]] = ...) -> None: ...

class PauseTrainingJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class PauseTrainingJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: TrainingJob
    def __init__(self, job: _Optional[_Union[TrainingJob, _Mapping]] = ...) -> None: ...

class ResumeTrainingJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ResumeTrainingJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: TrainingJob
    def __init__(self, job: _Optional[_Union[TrainingJob, _Mapping]] = ...) -> None: ...

class PublishTrainingJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class PublishTrainingJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: TrainingJob
    def __init__(self, job: _Optional[_Union[TrainingJob, _Mapping]] = ...) -> None: ...

class DeleteTrainingJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteTrainingJobResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchTrainingJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class WatchTrainingJobResponse(_message.Message):
    __slots__ = ("job", "progress")
    JOB_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    job: TrainingJob
    progress: TrainingProgress
    def __init__(self, job: _Optional[_Union[TrainingJob, _Mapping]] = ..., progress: _Optional[_Union[TrainingProgress, _Mapping]] = ...) -> None: ...

class TailTrainingLogRequest(_message.Message):
    __slots__ = ("name", "lines", "follow")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    name: str
    lines: int
    follow: bool
    def __init__(self, name: _Optional[str] = ..., lines: _Optional[int] = ..., follow: _Optional[bool] = ...) -> None: ...

class TailTrainingLogResponse(_message.Message):
    __slots__ = ("lines",)
    LINES_FIELD_NUMBER: _ClassVar[int]
    lines: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, lines: _Optional[_Iterable[str]] = ...) -> None: ...
