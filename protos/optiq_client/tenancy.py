"""What the client returns about tenants: frozen dataclasses, as in :mod:`optiq_client.types`."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class TenantRole(StrEnum):
    """What a tenant's tokens may do."""

    UNSPECIFIED = "UNSPECIFIED"
    TENANT = "TENANT"
    ADMIN = "ADMIN"


@dataclass(frozen=True, slots=True)
class TenantQuotas:
    """Limits of one tenant; 0 means none. See tenant.proto for what each counts."""

    concurrent_requests: int = 0
    queued_requests: int = 0
    tokens_per_minute: int = 0
    resident_bytes: int = 0
    queued_jobs: int = 0
    disk_bytes: int = 0


@dataclass(frozen=True, slots=True)
class TenantLoad:
    """What a tenant has and does now."""

    running_requests: int = 0
    queued_requests: int = 0
    adapter_count: int = 0
    resident_bytes: int = 0
    disk_bytes: int = 0
    open_jobs: int = 0
    virtual_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant."""

    name: str
    role: TenantRole
    weight: float
    quotas: TenantQuotas
    allowed_paths: tuple[str, ...]
    token_count: int
    load: TenantLoad = field(default_factory=TenantLoad)
    create_time: datetime | None = None
    update_time: datetime | None = None
    etag: str = ""

    @property
    def id(self) -> str:
        """Last component of the name."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class TenantToken:
    """A token without its text; ``use_time`` is to the minute, None if never used."""

    name: str
    create_time: datetime | None
    use_time: datetime | None

    @property
    def id(self) -> str:
        """Last component of the name."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class TenantUsage:
    """What one tenant used of one adapter on one UTC day; ``adapter`` is empty for the bare base."""

    tenant: str
    adapter: str
    day: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    training_seconds: float
