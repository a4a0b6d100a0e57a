# ruff: noqa: ASYNC109 - `timeout` is the deadline that goes over the wire
"""``client.tenants`` of both clients: who may use the daemon, and how much of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from optiq_client import calls_tenancy as calls
from optiq_client.tenancy import Tenant, TenantRole, TenantToken, TenantUsage

if TYPE_CHECKING:
    from optiq_client.aio import AsyncClient
    from optiq_client.client import Client


class Tenants:
    """``client.tenants``: who may use the daemon, and how much of it. Mostly for admins."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(
        self,
        tenant_id: str,
        *,
        role: TenantRole | None = None,
        weight: float | None = None,
        allowed_paths: Sequence[str] | None = None,
        timeout: float | None = None,
        **quotas: int,
    ) -> Tenant:
        """Add a tenant; quotas by the names of ``TenantQuotas``."""
        call = calls.create_tenant(tenant_id, role=role, weight=weight, quotas=quotas, allowed_paths=allowed_paths)
        return self._client.run(call, timeout)

    def get(self, tenant: str = "", *, timeout: float | None = None) -> Tenant:
        """One tenant, by id or full name; this client's own if empty."""
        return self._client.run(calls.get_tenant(tenant or self._client.tenant), timeout)

    def list(self, *, timeout: float | None = None) -> list[Tenant]:
        """All tenants that the caller may see, by name."""
        found: list[Tenant] = []
        token = ""
        while True:
            page = self._client.run(calls.list_tenants(token), timeout)
            found += page.items
            if not (token := page.next_token):
                return found

    def update(
        self,
        tenant: str,
        *,
        role: TenantRole | None = None,
        weight: float | None = None,
        allowed_paths: Sequence[str] | None = None,
        etag: str = "",
        timeout: float | None = None,
        **quotas: int,
    ) -> Tenant:
        """Change what is given. With ``etag``, only if nothing has changed since."""
        call = calls.update_tenant(
            tenant, role=role, weight=weight, quotas=quotas, allowed_paths=allowed_paths, etag=etag
        )
        return self._client.run(call, timeout)

    def delete(self, tenant: str, *, etag: str = "", force: bool = False, timeout: float | None = None) -> None:
        """Remove a tenant; with ``force``, its adapters and jobs too."""
        self._client.run(calls.delete_tenant(tenant, etag, force), timeout)

    def create_token(
        self, tenant: str = "", *, rotate: bool = False, timeout: float | None = None
    ) -> tuple[TenantToken, str]:
        """Make a token; it and its text, which nobody can read again. ``rotate`` revokes the tenant's others."""
        return self._client.run(calls.create_token(tenant or self._client.tenant, rotate), timeout)

    def tokens(self, tenant: str = "", *, timeout: float | None = None) -> Sequence[TenantToken]:
        """A tenant's tokens, without their text."""
        return self._client.run(calls.list_tokens(tenant or self._client.tenant), timeout)

    def revoke_token(self, tenant: str, token: str, *, timeout: float | None = None) -> None:
        """Refuse a token from now on, by its id or full name."""
        self._client.run(calls.delete_token(tenant, token), timeout)

    def usage(
        self, tenant: str = "", *, first_day: str = "", last_day: str = "", timeout: float | None = None
    ) -> Sequence[TenantUsage]:
        """Usage by day and adapter; ``-`` is every tenant. Days are ``YYYY-MM-DD``, both included."""
        found: list[TenantUsage] = []
        token = ""
        while True:
            call = calls.list_usage(tenant or self._client.tenant, first_day, last_day, token)
            page = self._client.run(call, timeout)
            found += page.items
            if not (token := page.next_token):
                return found

    def share(self, adapter: str, *, timeout: float | None = None) -> str:
        """Let every tenant use an adapter; its full name."""
        return self._client.run(calls.share_adapter(self._client.tenant, adapter), timeout)

    def unshare(self, adapter: str, *, timeout: float | None = None) -> None:
        """Make an adapter private again."""
        self._client.run(calls.unshare_adapter(self._client.tenant, adapter), timeout)

    def shared(self, *, timeout: float | None = None) -> Sequence[str]:
        """Full names of the adapters that every tenant may use."""
        return self._client.run(calls.list_shared(), timeout)


class AsyncTenants:
    """``client.tenants``: who may use the daemon, and how much of it. Mostly for admins."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def create(
        self,
        tenant_id: str,
        *,
        role: TenantRole | None = None,
        weight: float | None = None,
        allowed_paths: Sequence[str] | None = None,
        timeout: float | None = None,
        **quotas: int,
    ) -> Tenant:
        """Add a tenant; quotas by the names of ``TenantQuotas``."""
        call = calls.create_tenant(tenant_id, role=role, weight=weight, quotas=quotas, allowed_paths=allowed_paths)
        return await self._client.run(call, timeout)

    async def get(self, tenant: str = "", *, timeout: float | None = None) -> Tenant:
        """One tenant, by id or full name; this client's own if empty."""
        return await self._client.run(calls.get_tenant(tenant or self._client.tenant), timeout)

    async def list(self, *, timeout: float | None = None) -> list[Tenant]:
        """All tenants that the caller may see, by name."""
        found: list[Tenant] = []
        token = ""
        while True:
            page = await self._client.run(calls.list_tenants(token), timeout)
            found += page.items
            if not (token := page.next_token):
                return found

    async def update(
        self,
        tenant: str,
        *,
        role: TenantRole | None = None,
        weight: float | None = None,
        allowed_paths: Sequence[str] | None = None,
        etag: str = "",
        timeout: float | None = None,
        **quotas: int,
    ) -> Tenant:
        """Change what is given. With ``etag``, only if nothing has changed since."""
        call = calls.update_tenant(
            tenant, role=role, weight=weight, quotas=quotas, allowed_paths=allowed_paths, etag=etag
        )
        return await self._client.run(call, timeout)

    async def delete(self, tenant: str, *, etag: str = "", force: bool = False, timeout: float | None = None) -> None:
        """Remove a tenant; with ``force``, its adapters and jobs too."""
        await self._client.run(calls.delete_tenant(tenant, etag, force), timeout)

    async def create_token(
        self, tenant: str = "", *, rotate: bool = False, timeout: float | None = None
    ) -> tuple[TenantToken, str]:
        """Make a token; it and its text, which nobody can read again. ``rotate`` revokes the tenant's others."""
        return await self._client.run(calls.create_token(tenant or self._client.tenant, rotate), timeout)

    async def tokens(self, tenant: str = "", *, timeout: float | None = None) -> Sequence[TenantToken]:
        """A tenant's tokens, without their text."""
        return await self._client.run(calls.list_tokens(tenant or self._client.tenant), timeout)

    async def revoke_token(self, tenant: str, token: str, *, timeout: float | None = None) -> None:
        """Refuse a token from now on, by its id or full name."""
        await self._client.run(calls.delete_token(tenant, token), timeout)

    async def usage(
        self, tenant: str = "", *, first_day: str = "", last_day: str = "", timeout: float | None = None
    ) -> Sequence[TenantUsage]:
        """Usage by day and adapter; ``-`` is every tenant. Days are ``YYYY-MM-DD``, both included."""
        found: list[TenantUsage] = []
        token = ""
        while True:
            call = calls.list_usage(tenant or self._client.tenant, first_day, last_day, token)
            page = await self._client.run(call, timeout)
            found += page.items
            if not (token := page.next_token):
                return found

    async def share(self, adapter: str, *, timeout: float | None = None) -> str:
        """Let every tenant use an adapter; its full name."""
        return await self._client.run(calls.share_adapter(self._client.tenant, adapter), timeout)

    async def unshare(self, adapter: str, *, timeout: float | None = None) -> None:
        """Make an adapter private again."""
        await self._client.run(calls.unshare_adapter(self._client.tenant, adapter), timeout)

    async def shared(self, *, timeout: float | None = None) -> Sequence[str]:
        """Full names of the adapters that every tenant may use."""
        return await self._client.run(calls.list_shared(), timeout)
