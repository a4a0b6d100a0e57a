"""The one typed client of an Optiq daemon: agent code, the command line and the dashboard use it.

::

    from optiq_client import Client

    client = Client()
    for text in client.generate("What is 12 in Roman numerals?", adapter="roman"):
        print(text, end="", flush=True)

Names load on first use, so that importing :mod:`optiq_client.paths` or :mod:`optiq_client.errors` stays cheap.
MLX is never imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optiq_client.aio import AsyncClient, AsyncGeneration, AsyncStream
    from optiq_client.chat import Message, Tool, ToolCall
    from optiq_client.client import Client, Generation, Stream
    from optiq_client.credentials import CredentialsError, Tls
    from optiq_client.errors import (
        AlreadyExists,
        Cancelled,
        ConnectionFailed,
        DeadlineExceeded,
        FailedPrecondition,
        InvalidRequest,
        NotFound,
        OptiqClientError,
        PermissionDenied,
        ResourceExhausted,
        ServerError,
        Unavailable,
        Violation,
    )
    from optiq_client.generation_events import (
        BatchStats,
        Chunk,
        Finished,
        GenerationEvent,
        Queued,
        ServedAdapter,
        Started,
        Timings,
        TokenLogprob,
        Usage,
    )
    from optiq_client.jobs import JobGateResult, JobPublication, JobSchedule, JobWait
    from optiq_client.routing import Route, RouteCount, RouteDecision, RouteTrial, ShadowAnswer
    from optiq_client.states import (
        AdapterState,
        ChangeType,
        EngineState,
        FinishReason,
        HealthStatus,
        JobState,
        RankScaling,
        WaitReason,
    )
    from optiq_client.tenancy import Tenant, TenantLoad, TenantQuotas, TenantRole, TenantToken, TenantUsage
    from optiq_client.types import (
        Adapter,
        AdapterChange,
        AdapterModule,
        AdapterVersion,
        Base,
        Device,
        Engine,
        Event,
        Job,
        JobUpdate,
        LiveRequest,
        Progress,
        QuarantineReason,
        Status,
        TrainingAdvice,
        TrainingConfig,
        TrainingPlan,
    )

_HOME = {
    "states": (
        "AdapterState",
        "ChangeType",
        "EngineState",
        "FinishReason",
        "HealthStatus",
        "JobSchedule",
        "JobState",
        "RankScaling",
        "WaitReason",
    ),
    "aio": ("AsyncClient", "AsyncGeneration", "AsyncStream"),
    "chat": ("Message", "Tool", "ToolCall"),
    "client": ("Client", "Generation", "Stream"),
    "credentials": ("CredentialsError", "Tls"),
    "generation_events": (
        "BatchStats",
        "Chunk",
        "Finished",
        "GenerationEvent",
        "Queued",
        "ServedAdapter",
        "Started",
        "Timings",
        "TokenLogprob",
        "Usage",
    ),
    "jobs": ("JobGateResult", "JobPublication", "JobSchedule", "JobWait"),
    "routing": ("Route", "RouteCount", "RouteDecision", "RouteTrial", "ShadowAnswer"),
    "tenancy": ("Tenant", "TenantLoad", "TenantQuotas", "TenantRole", "TenantToken", "TenantUsage"),
    "errors": (
        "AlreadyExists",
        "Cancelled",
        "ConnectionFailed",
        "DeadlineExceeded",
        "FailedPrecondition",
        "InvalidRequest",
        "NotFound",
        "OptiqClientError",
        "PermissionDenied",
        "ResourceExhausted",
        "ServerError",
        "Unavailable",
        "Violation",
    ),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Adapter",
    "AdapterChange",
    "AdapterModule",
    "AdapterState",
    "AdapterVersion",
    "AlreadyExists",
    "AsyncClient",
    "AsyncGeneration",
    "AsyncStream",
    "Base",
    "BatchStats",
    "Cancelled",
    "ChangeType",
    "Chunk",
    "Client",
    "ConnectionFailed",
    "CredentialsError",
    "DeadlineExceeded",
    "Device",
    "Engine",
    "EngineState",
    "Event",
    "FailedPrecondition",
    "FinishReason",
    "Finished",
    "Generation",
    "GenerationEvent",
    "HealthStatus",
    "InvalidRequest",
    "Job",
    "JobGateResult",
    "JobPublication",
    "JobSchedule",
    "JobState",
    "JobUpdate",
    "JobWait",
    "LiveRequest",
    "Message",
    "NotFound",
    "OptiqClientError",
    "PermissionDenied",
    "Progress",
    "QuarantineReason",
    "Queued",
    "RankScaling",
    "ResourceExhausted",
    "Route",
    "RouteCount",
    "RouteDecision",
    "RouteTrial",
    "ServedAdapter",
    "ServerError",
    "ShadowAnswer",
    "Started",
    "Status",
    "Stream",
    "Tenant",
    "TenantLoad",
    "TenantQuotas",
    "TenantRole",
    "TenantToken",
    "TenantUsage",
    "Timings",
    "Tls",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "TrainingAdvice",
    "TrainingConfig",
    "TrainingPlan",
    "Unavailable",
    "Usage",
    "Violation",
    "WaitReason",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'optiq_client' has no attribute {name!r}")
    value = getattr(import_module(f"optiq_client.{_MODULE_OF.get(name, 'types')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
