"""``client.tenants`` of both clients: who may use the daemon, and how much of it."""

from __future__ import annotations

import builtins
from collections.abc import Sequence

from optiq_client import calls_tenancy as calls
from optiq_client.halves import Described, Listed, Resource, awaited, awaited_list, blocking, blocking_list
from optiq_client.tenancy import Tenant, TenantRole, TenantToken, TenantUsage


class _Described(Resource):
    """What both halves do."""

    def create(
        self: Resource,
        tenant_id: str,
        *,
        role: TenantRole | None = None,
        weight: float | None = None,
        allowed_paths: Sequence[str] | None = None,
        timeout: float | None = None,
        **quotas: int,
    ) -> Described[Tenant]:
        """Add a tenant; quotas by the names of ``TenantQuotas``."""
        call = calls.create_tenant(tenant_id, role=role, weight=weight, quotas=quotas, allowed_paths=allowed_paths)
        return Described(call, timeout)

    def get(self: Resource, tenant: str = "", *, timeout: float | None = None) -> Described[Tenant]:
        """One tenant, by id or full name; this client's own if empty."""
        return Described(calls.get_tenant(tenant or self._tenant), timeout)

    def list(self: Resource, *, timeout: float | None = None) -> Listed[Tenant]:
        """All tenants that the caller may see, by name."""
        return Listed(calls.list_tenants, timeout)

    def update(
        self: Resource,
        tenant: str,
        *,
        role: TenantRole | None = None,
        weight: float | None = None,
        allowed_paths: Sequence[str] | None = None,
        etag: str = "",
        timeout: float | None = None,
        **quotas: int,
    ) -> Described[Tenant]:
        """Change what is given. With ``etag``, only if nothing has changed since."""
        call = calls.update_tenant(
            tenant, role=role, weight=weight, quotas=quotas, allowed_paths=allowed_paths, etag=etag
        )
        return Described(call, timeout)

    def delete(
        self: Resource, tenant: str, *, etag: str = "", force: bool = False, timeout: float | None = None
    ) -> Described[None]:
        """Remove a tenant; with ``force``, its adapters and jobs too."""
        return Described(calls.delete_tenant(tenant, etag, force), timeout)

    def create_token(
        self: Resource, tenant: str = "", *, rotate: bool = False, timeout: float | None = None
    ) -> Described[tuple[TenantToken, str]]:
        """Make a token; it and its text, which nobody can read again. ``rotate`` revokes the tenant's others."""
        return Described(calls.create_token(tenant or self._tenant, rotate), timeout)

    def tokens(
        self: Resource, tenant: str = "", *, timeout: float | None = None
    ) -> Described[builtins.list[TenantToken]]:
        """A tenant's tokens, without their text."""
        return Described(calls.list_tokens(tenant or self._tenant), timeout)

    def revoke_token(self: Resource, tenant: str, token: str, *, timeout: float | None = None) -> Described[None]:
        """Refuse a token from now on, by its id or full name."""
        return Described(calls.delete_token(tenant, token), timeout)

    def usage(
        self: Resource, tenant: str = "", *, first_day: str = "", last_day: str = "", timeout: float | None = None
    ) -> Listed[TenantUsage]:
        """Usage by day and adapter; ``-`` is every tenant. Days are ``YYYY-MM-DD``, both included."""
        return Listed(lambda token: calls.list_usage(tenant or self._tenant, first_day, last_day, token), timeout)

    def share(self: Resource, adapter: str, *, timeout: float | None = None) -> Described[str]:
        """Let every tenant use an adapter; its full name."""
        return Described(calls.share_adapter(self._tenant, adapter), timeout)

    def unshare(self: Resource, adapter: str, *, timeout: float | None = None) -> Described[None]:
        """Make an adapter private again."""
        return Described(calls.unshare_adapter(self._tenant, adapter), timeout)

    def shared(self: Resource, *, timeout: float | None = None) -> Described[builtins.list[str]]:
        """Full names of the adapters that every tenant may use."""
        return Described(calls.list_shared(), timeout)


class Tenants(Resource):
    """``client.tenants``: who may use the daemon, and how much of it. Mostly for admins."""

    create = blocking(_Described.create)
    get = blocking(_Described.get)
    list = blocking_list(_Described.list)
    update = blocking(_Described.update)
    delete = blocking(_Described.delete)
    create_token = blocking(_Described.create_token)
    tokens = blocking(_Described.tokens)
    revoke_token = blocking(_Described.revoke_token)
    usage = blocking_list(_Described.usage)
    share = blocking(_Described.share)
    unshare = blocking(_Described.unshare)
    shared = blocking(_Described.shared)


class AsyncTenants(Resource):
    """``client.tenants``: who may use the daemon, and how much of it. Mostly for admins."""

    create = awaited(_Described.create)
    get = awaited(_Described.get)
    list = awaited_list(_Described.list)
    update = awaited(_Described.update)
    delete = awaited(_Described.delete)
    create_token = awaited(_Described.create_token)
    tokens = awaited(_Described.tokens)
    revoke_token = awaited(_Described.revoke_token)
    usage = awaited_list(_Described.usage)
    share = awaited(_Described.share)
    unshare = awaited(_Described.unshare)
    shared = awaited(_Described.shared)
