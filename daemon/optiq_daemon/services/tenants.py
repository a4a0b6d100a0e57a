"""`optiq.v1.TenantService`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import msgspec

from optiq_daemon import convert
from optiq_daemon.errors import ForbiddenError, InvalidRequestError, NotFoundError
from optiq_daemon.identity import caller
from optiq_daemon.names import AdapterKey, check_id, parse_adapter, parse_parent, parse_token
from optiq_daemon.registry import Registry
from optiq_daemon.tenants import Quotas, TenantRecord, Tenants, unknown_tenant
from optiq_daemon.tokens import Token
from optiq_daemon.usage import DAY_S, Usage, UsageTable
from optiq_protos.v1 import tenant_pb2, tenant_pb2_grpc

_LAST_DAY = 10**6
_QUOTAS = tuple(field.name for field in msgspec.structs.fields(Quotas))
_MASK = ("role", "weight", "allowed_paths", "quotas", *(f"quotas.{name}" for name in _QUOTAS))
_ROLES: dict[int, Any] = {tenant_pb2.TENANT_ROLE_TENANT: "tenant", tenant_pb2.TENANT_ROLE_ADMIN: "admin"}


class TenantService(tenant_pb2_grpc.TenantServiceServicer):
    """Translates between the wire and the tenants.

    Args:
        load: what a tenant has and does now.
        remove: removes a tenant's adapters and jobs, by force or raising RefusedError if there are any.
    """

    def __init__(
        self,
        tenants: Tenants,
        usage: UsageTable,
        registry: Registry,
        load: Callable[[str], tenant_pb2.TenantLoad],
        remove: Callable[[str, bool], Any],
    ) -> None:
        self._tenants = tenants
        self._usage = usage
        self._registry = registry
        self._load = load
        self._remove = remove

    async def CreateTenant(self, request: tenant_pb2.CreateTenantRequest, _: Any) -> tenant_pb2.CreateTenantResponse:
        """Add a tenant."""
        _admins_only()
        given = request.tenant
        record = _changed(TenantRecord(id=check_id(request.tenant_id, "tenant_id")), given, _set_fields(given))
        return tenant_pb2.CreateTenantResponse(tenant=self._message(self._tenants.create(record)))

    async def GetTenant(self, request: tenant_pb2.GetTenantRequest, _: Any) -> tenant_pb2.GetTenantResponse:
        """One tenant."""
        return tenant_pb2.GetTenantResponse(tenant=self._message(self._tenants.get(_tenant_id(request.name))))

    async def ListTenants(self, request: tenant_pb2.ListTenantsRequest, _: Any) -> tenant_pb2.ListTenantsResponse:
        """A page, ordered by name."""
        size = convert.page_size(request.page_size)
        cursor = convert.page_cursor("tenants", request.page_token, tuple[str])
        records = [r for r in self._tenants.all() if caller().sees(r.id) and (cursor is None or r.id > cursor[0])]
        page = records[:size]
        more = convert.page_token("tenants", [page[-1].id]) if len(records) > size else ""
        return tenant_pb2.ListTenantsResponse(tenants=[self._message(r) for r in page], next_page_token=more)

    async def UpdateTenant(self, request: tenant_pb2.UpdateTenantRequest, _: Any) -> tenant_pb2.UpdateTenantResponse:
        """Change the fields of the mask."""
        _admins_only()
        given = request.tenant
        mask = tuple(request.update_mask.paths) or _set_fields(given)
        if unknown := sorted(set(mask) - set(_MASK)):
            raise InvalidRequestError.of("update_mask", f"{', '.join(unknown)}: not one of {', '.join(_MASK)}")
        record = _changed(self._tenants.get(_tenant_id(given.name, "tenant.name")), given, mask)
        return tenant_pb2.UpdateTenantResponse(tenant=self._message(self._tenants.update(record, given.etag)))

    async def DeleteTenant(self, request: tenant_pb2.DeleteTenantRequest, _: Any) -> tenant_pb2.DeleteTenantResponse:
        """Remove a tenant."""
        _admins_only()
        tenant = _tenant_id(request.name)
        if tenant == "default":
            raise InvalidRequestError.of("name", "the default tenant always exists")
        self._tenants.check_etag(tenant, request.etag)
        await self._remove(tenant, request.force)
        self._tenants.delete(tenant)
        return tenant_pb2.DeleteTenantResponse()

    async def CreateTenantToken(
        self, request: tenant_pb2.CreateTenantTokenRequest, _: Any
    ) -> tenant_pb2.CreateTenantTokenResponse:
        """Make a token and show it, once."""
        tenant = parse_parent(request.parent)
        self._tenants.get(tenant)
        token, secret = self._tenants.tokens.create(tenant, rotate=request.rotate)
        return tenant_pb2.CreateTenantTokenResponse(token=_token(token), secret=secret)

    async def ListTenantTokens(
        self, request: tenant_pb2.ListTenantTokensRequest, _: Any
    ) -> tenant_pb2.ListTenantTokensResponse:
        """A tenant's tokens, without their text."""
        tenant = parse_parent(request.parent)
        self._tenants.get(tenant)
        return tenant_pb2.ListTenantTokensResponse(tokens=[_token(t) for t in self._tenants.tokens.of(tenant)])

    async def DeleteTenantToken(
        self, request: tenant_pb2.DeleteTenantTokenRequest, _: Any
    ) -> tenant_pb2.DeleteTenantTokenResponse:
        """Revoke a token."""
        tenant, token = parse_token(request.name)
        if not self._tenants.tokens.delete(tenant, token):
            raise NotFoundError("token", request.name, f"there is no token {token!r} of tenant {tenant!r}")
        return tenant_pb2.DeleteTenantTokenResponse()

    async def ListTenantUsage(
        self, request: tenant_pb2.ListTenantUsageRequest, _: Any
    ) -> tenant_pb2.ListTenantUsageResponse:
        """A page, ordered by day, tenant and adapter."""
        everybody = request.parent == "tenants/-"
        tenant = "" if everybody else parse_parent(request.parent)
        if not everybody:
            self._tenants.get(tenant)
        size = convert.page_size(request.page_size)
        scope = f"usage/{tenant}"
        after = convert.page_cursor(scope, request.page_token, tuple[int, str, str, str])
        days = _day(request.first_day, "first_day", 0), _day(request.last_day, "last_day", _LAST_DAY)
        rows = self._usage.page(tenant, days, size + 1, after)
        page = rows[:size]
        more = convert.page_token(scope, list(page[-1].cursor)) if len(rows) > size else ""
        return tenant_pb2.ListTenantUsageResponse(usage=[_usage(row) for row in page], next_page_token=more)

    async def ShareAdapter(self, request: tenant_pb2.ShareAdapterRequest, _: Any) -> tenant_pb2.ShareAdapterResponse:
        """Let every tenant use an adapter."""
        _admins_only()
        key = parse_adapter(request.name)
        self._registry.record(key)
        self._tenants.share(key)
        self._registry.watchers.share_changed(key)
        return tenant_pb2.ShareAdapterResponse(shared_adapter=tenant_pb2.SharedAdapter(adapter=key.name))

    async def UnshareAdapter(
        self, request: tenant_pb2.UnshareAdapterRequest, _: Any
    ) -> tenant_pb2.UnshareAdapterResponse:
        """Make an adapter private again."""
        _admins_only()
        key = parse_adapter(request.name)
        self._tenants.unshare(key)
        self._registry.watchers.share_changed(key)
        return tenant_pb2.UnshareAdapterResponse()

    async def ListSharedAdapters(
        self, request: tenant_pb2.ListSharedAdaptersRequest, _: Any
    ) -> tenant_pb2.ListSharedAdaptersResponse:
        """What every tenant may use; names whose adapter is gone are left out until it is back."""
        keys = [key for key in self._tenants.shared() if self._registry.find(key) is not None]
        return tenant_pb2.ListSharedAdaptersResponse(
            shared_adapters=[tenant_pb2.SharedAdapter(adapter=key.name) for key in keys]
        )

    def _message(self, record: TenantRecord) -> tenant_pb2.Tenant:
        return tenant_pb2.Tenant(
            name=record.name,
            role=f"TENANT_ROLE_{record.role.upper()}",
            weight=record.weight,
            quotas=tenant_pb2.TenantQuotas(**msgspec.structs.asdict(record.quotas)),
            allowed_paths=record.allowed_paths,
            token_count=len(self._tenants.tokens.of(record.id)),
            load=self._load(record.id),
            create_time=convert.timestamp(record.create_time),
            update_time=convert.timestamp(record.update_time),
            etag=record.etag,
        )


def _admins_only() -> None:
    if not caller().admin:
        raise ForbiddenError("only an admin may do this", reason="ADMIN_ONLY")


def _tenant_id(text: str, field: str = "name") -> str:
    if not text:
        raise InvalidRequestError.of(field, "is needed: tenants/{tenant}")
    tenant = parse_parent(text, field)
    if not caller().sees(tenant):
        raise unknown_tenant(tenant)
    return tenant


def _set_fields(given: tenant_pb2.Tenant) -> tuple[str, ...]:
    """The fields that a message sets; the others stay as they are."""
    return tuple(field.name for field, _ in given.ListFields() if field.name in _MASK)


def _changed(record: TenantRecord, given: tenant_pb2.Tenant, mask: tuple[str, ...]) -> TenantRecord:
    values: dict[str, Any] = {}
    quotas = msgspec.structs.asdict(record.quotas)
    for path in mask:
        if path == "role":
            if given.role not in _ROLES:
                raise InvalidRequestError.of("tenant.role", "must be TENANT_ROLE_TENANT or TENANT_ROLE_ADMIN")
            values["role"] = _ROLES[given.role]
        elif path == "weight":
            values["weight"] = given.weight
        elif path == "allowed_paths":
            values["allowed_paths"] = tuple(given.allowed_paths)
        else:
            names = _QUOTAS if path == "quotas" else (path.removeprefix("quotas."),)
            quotas.update({name: getattr(given.quotas, name) for name in names})
    return msgspec.structs.replace(record, quotas=Quotas(**quotas), **values)


def _token(token: Token) -> tenant_pb2.TenantToken:
    return tenant_pb2.TenantToken(
        name=token.name,
        create_time=convert.timestamp(token.create_time),
        use_time=convert.timestamp(token.use_time),
    )


def _usage(row: Usage) -> tenant_pb2.TenantUsage:
    return tenant_pb2.TenantUsage(
        tenant=f"tenants/{row.tenant}",
        adapter=AdapterKey(row.owner, row.adapter).name if row.adapter else "",
        day=datetime.fromtimestamp(row.day * DAY_S, UTC).date().isoformat(),
        requests=row.requests,
        prompt_tokens=row.prompt_tokens,
        cached_tokens=row.cached_tokens,
        completion_tokens=row.completion_tokens,
        training_seconds=row.training_seconds,
    )


def _day(text: str, field: str, default: int) -> int:
    if not text:
        return default
    try:
        return (date.fromisoformat(text) - date(1970, 1, 1)).days
    except ValueError:
        raise InvalidRequestError.of(field, f"{text!r} is not a day, for example 2026-11-22") from None
