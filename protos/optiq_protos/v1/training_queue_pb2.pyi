import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobWaitReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_WAIT_REASON_UNSPECIFIED: _ClassVar[JobWaitReason]
    JOB_WAIT_REASON_TURN: _ClassVar[JobWaitReason]
    JOB_WAIT_REASON_MEMORY: _ClassVar[JobWaitReason]
    JOB_WAIT_REASON_JOBS: _ClassVar[JobWaitReason]
    JOB_WAIT_REASON_TIME: _ClassVar[JobWaitReason]
    JOB_WAIT_REASON_ENGINE: _ClassVar[JobWaitReason]
JOB_WAIT_REASON_UNSPECIFIED: JobWaitReason
JOB_WAIT_REASON_TURN: JobWaitReason
JOB_WAIT_REASON_MEMORY: JobWaitReason
JOB_WAIT_REASON_JOBS: JobWaitReason
JOB_WAIT_REASON_TIME: JobWaitReason
JOB_WAIT_REASON_ENGINE: JobWaitReason

class JobSchedule(_message.Message):
    __slots__ = ("priority", "after", "not_before")
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    NOT_BEFORE_FIELD_NUMBER: _ClassVar[int]
    priority: int
    after: _containers.RepeatedScalarFieldContainer[str]
    not_before: _timestamp_pb2.Timestamp
    def __init__(self, priority: _Optional[int] = ..., after: _Optional[_Iterable[str]] = ..., not_before: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class JobPublication(_message.Message):
    __slots__ = ("route", "route_weight", "gate", "gate_path")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    ROUTE_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    GATE_PATH_FIELD_NUMBER: _ClassVar[int]
    route: str
    route_weight: int
    gate: bool
    gate_path: str
    def __init__(self, route: _Optional[str] = ..., route_weight: _Optional[int] = ..., gate: _Optional[bool] = ..., gate_path: _Optional[str] = ...) -> None: ...

class JobGateResult(_message.Message):
    __slots__ = ("passed", "loss", "present_loss", "present", "tokens", "data_path")
    PASSED_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    PRESENT_LOSS_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    DATA_PATH_FIELD_NUMBER: _ClassVar[int]
    passed: bool
    loss: float
    present_loss: float
    present: str
    tokens: int
    data_path: str
    def __init__(self, passed: _Optional[bool] = ..., loss: _Optional[float] = ..., present_loss: _Optional[float] = ..., present: _Optional[str] = ..., tokens: _Optional[int] = ..., data_path: _Optional[str] = ...) -> None: ...

class JobWait(_message.Message):
    __slots__ = ("reason", "needed_bytes", "free_bytes", "needed_resources", "free_resources", "ahead", "jobs", "until")
    REASON_FIELD_NUMBER: _ClassVar[int]
    NEEDED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    NEEDED_RESOURCES_FIELD_NUMBER: _ClassVar[int]
    FREE_RESOURCES_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    JOBS_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    reason: JobWaitReason
    needed_bytes: int
    free_bytes: int
    needed_resources: int
    free_resources: int
    ahead: int
    jobs: _containers.RepeatedScalarFieldContainer[str]
    until: _timestamp_pb2.Timestamp
    def __init__(self, reason: _Optional[_Union[JobWaitReason, str]] = ..., needed_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., needed_resources: _Optional[int] = ..., free_resources: _Optional[int] = ..., ahead: _Optional[int] = ..., jobs: _Optional[_Iterable[str]] = ..., until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
