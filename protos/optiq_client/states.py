"""The client's enums. A value is the wire's name without its prefix; one that is not known here is ``UNSPECIFIED``."""

from __future__ import annotations

from enum import StrEnum


class AdapterState(StrEnum):
    """Where an adapter is on its way from a dropped folder to a served row."""

    UNSPECIFIED = "UNSPECIFIED"
    DISCOVERED = "DISCOVERED"
    VALIDATING = "VALIDATING"
    AVAILABLE = "AVAILABLE"
    LOADING = "LOADING"
    RESIDENT = "RESIDENT"
    UNLOADING = "UNLOADING"
    QUARANTINED = "QUARANTINED"


class JobState(StrEnum):
    """Where a training job is."""

    UNSPECIFIED = "UNSPECIFIED"
    QUEUED = "QUEUED"
    PLANNING = "PLANNING"
    WAITING = "WAITING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    REFUSED = "REFUSED"

    @property
    def ended(self) -> bool:
        """True once the job cannot change any more."""
        return self in {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.REFUSED}


class WaitReason(StrEnum):
    """What a WAITING job waits for."""

    UNSPECIFIED = "UNSPECIFIED"
    TURN = "TURN"
    MEMORY = "MEMORY"
    JOBS = "JOBS"
    TIME = "TIME"
    ENGINE = "ENGINE"


class EngineState(StrEnum):
    """State of the engine process."""

    UNSPECIFIED = "UNSPECIFIED"
    STARTING = "STARTING"
    SERVING = "SERVING"
    RESTARTING = "RESTARTING"
    FAILED = "FAILED"


class FinishReason(StrEnum):
    """Why a generation ended."""

    UNSPECIFIED = "UNSPECIFIED"
    STOP = "STOP"
    STOP_STRING = "STOP_STRING"
    LENGTH = "LENGTH"
    TOOL_CALLS = "TOOL_CALLS"


class RankScaling(StrEnum):
    """How ranks are spread over the adapted modules."""

    UNSPECIFIED = "UNSPECIFIED"
    CONSTANT = "CONSTANT"
    BY_BITS = "BY_BITS"
    BY_KL = "BY_KL"
    LINEAR = "LINEAR"
    ATTENTION = "ATTENTION"
    FFN = "FFN"
    GRADIENT = "GRADIENT"
    PATTERN = "PATTERN"
    ADALORA = "ADALORA"


class ChangeType(StrEnum):
    """What happened to the adapter of an :class:`AdapterChange`."""

    UNSPECIFIED = "UNSPECIFIED"
    LISTED = "LISTED"
    CHANGED = "CHANGED"
    DELETED = "DELETED"
    LIST_END = "LIST_END"


class HealthStatus(StrEnum):
    """Answer of grpc.health.v1."""

    UNKNOWN = "UNKNOWN"
    SERVING = "SERVING"
    NOT_SERVING = "NOT_SERVING"
    SERVICE_UNKNOWN = "SERVICE_UNKNOWN"
