"""TenantService as data, like :mod:`optiq_client.calls`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from optiq_client.calls import PAGE_SIZE, Call, Page, adapter_name, tenant_name
from optiq_client.convert import _enum, _optional_time
from optiq_client.tenancy import Tenant, TenantLoad, TenantQuotas, TenantRole, TenantToken, TenantUsage
from optiq_protos.v1 import tenant_pb2

_SERVICE = "/optiq.v1.TenantService"


def _fields(message: Any) -> dict[str, Any]:
    return {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}


def tenant(message: tenant_pb2.Tenant) -> Tenant:
    """A tenant."""
    return Tenant(
        name=message.name,
        role=_enum(TenantRole, tenant_pb2.TenantRole, message.role, "TENANT_ROLE_"),
        weight=message.weight,
        quotas=TenantQuotas(**_fields(message.quotas)),
        allowed_paths=tuple(message.allowed_paths),
        token_count=message.token_count,
        load=TenantLoad(**_fields(message.load)),
        create_time=_optional_time(message, "create_time"),
        update_time=_optional_time(message, "update_time"),
        etag=message.etag,
    )


def _token(message: tenant_pb2.TenantToken) -> TenantToken:
    return TenantToken(message.name, _optional_time(message, "create_time"), _optional_time(message, "use_time"))


def _tenant(response: Any) -> Tenant:
    return tenant(response.tenant)


def _message(
    name: str,
    *,
    role: TenantRole | None,
    weight: float | None,
    quotas: dict[str, int],
    allowed_paths: Sequence[str] | None,
    etag: str = "",
) -> tuple[tenant_pb2.Tenant, list[str]]:
    """The message, and the paths of what is set in it."""
    made = tenant_pb2.Tenant(name=name, quotas=tenant_pb2.TenantQuotas(**quotas), etag=etag)
    mask = [f"quotas.{field}" for field in quotas]
    if role is not None:
        made.role = tenant_pb2.TenantRole.Value(f"TENANT_ROLE_{role.name}")  # type: ignore[assignment]
        mask.append("role")
    if weight is not None:
        made.weight = weight
        mask.append("weight")
    if allowed_paths is not None:
        made.allowed_paths.extend(allowed_paths)
        mask.append("allowed_paths")
    return made, mask


def create_tenant(
    tenant_id: str,
    *,
    role: TenantRole | None,
    weight: float | None,
    quotas: dict[str, int],
    allowed_paths: Sequence[str] | None,
) -> Call[Tenant]:
    """TenantService.CreateTenant."""
    message, _ = _message("", role=role, weight=weight, quotas=quotas, allowed_paths=allowed_paths)
    request = tenant_pb2.CreateTenantRequest(tenant_id=tenant_id, tenant=message)
    return Call(f"{_SERVICE}/CreateTenant", request, tenant_pb2.CreateTenantResponse, _tenant)


def get_tenant(tenant_id: str) -> Call[Tenant]:
    """TenantService.GetTenant."""
    request = tenant_pb2.GetTenantRequest(name=tenant_name(tenant_id))
    return Call(f"{_SERVICE}/GetTenant", request, tenant_pb2.GetTenantResponse, _tenant)


def list_tenants(page_token: str) -> Call[Page[Tenant]]:
    """TenantService.ListTenants, one page."""
    return Call(
        f"{_SERVICE}/ListTenants",
        tenant_pb2.ListTenantsRequest(page_size=PAGE_SIZE, page_token=page_token),
        tenant_pb2.ListTenantsResponse,
        lambda r: Page([tenant(t) for t in r.tenants], r.next_page_token),
    )


def update_tenant(
    tenant_id: str,
    *,
    role: TenantRole | None,
    weight: float | None,
    quotas: dict[str, int],
    allowed_paths: Sequence[str] | None,
    etag: str,
) -> Call[Tenant]:
    """TenantService.UpdateTenant."""
    message, mask = _message(
        tenant_name(tenant_id), role=role, weight=weight, quotas=quotas, allowed_paths=allowed_paths, etag=etag
    )
    request = tenant_pb2.UpdateTenantRequest(tenant=message, update_mask=FieldMask(paths=mask))
    return Call(f"{_SERVICE}/UpdateTenant", request, tenant_pb2.UpdateTenantResponse, _tenant)


def delete_tenant(tenant_id: str, etag: str, force: bool) -> Call[None]:
    """TenantService.DeleteTenant."""
    request = tenant_pb2.DeleteTenantRequest(name=tenant_name(tenant_id), etag=etag, force=force)
    return Call(f"{_SERVICE}/DeleteTenant", request, tenant_pb2.DeleteTenantResponse, lambda _: None)


def create_token(tenant_id: str, rotate: bool) -> Call[tuple[TenantToken, str]]:
    """TenantService.CreateTenantToken: the token and its text."""
    request = tenant_pb2.CreateTenantTokenRequest(parent=tenant_name(tenant_id), rotate=rotate)
    return Call(
        f"{_SERVICE}/CreateTenantToken",
        request,
        tenant_pb2.CreateTenantTokenResponse,
        lambda r: (_token(r.token), r.secret),
    )


def list_tokens(tenant_id: str) -> Call[list[TenantToken]]:
    """TenantService.ListTenantTokens."""
    request = tenant_pb2.ListTenantTokensRequest(parent=tenant_name(tenant_id))
    return Call(
        f"{_SERVICE}/ListTenantTokens",
        request,
        tenant_pb2.ListTenantTokensResponse,
        lambda r: [_token(t) for t in r.tokens],
    )


def delete_token(tenant_id: str, token: str) -> Call[None]:
    """TenantService.DeleteTenantToken."""
    name = token if "/" in token else f"{tenant_name(tenant_id)}/tokens/{token}"
    request = tenant_pb2.DeleteTenantTokenRequest(name=name)
    return Call(f"{_SERVICE}/DeleteTenantToken", request, tenant_pb2.DeleteTenantTokenResponse, lambda _: None)


def list_usage(tenant_id: str, first_day: str, last_day: str, page_token: str) -> Call[Page[TenantUsage]]:
    """TenantService.ListTenantUsage, one page; ``-`` is every tenant."""
    request = tenant_pb2.ListTenantUsageRequest(
        parent=tenant_name(tenant_id),
        first_day=first_day,
        last_day=last_day,
        page_size=PAGE_SIZE,
        page_token=page_token,
    )
    return Call(
        f"{_SERVICE}/ListTenantUsage",
        request,
        tenant_pb2.ListTenantUsageResponse,
        lambda r: Page([TenantUsage(**_fields(row)) for row in r.usage], r.next_page_token),
    )


def share_adapter(tenant_id: str, adapter: str) -> Call[str]:
    """TenantService.ShareAdapter: the adapter's full name."""
    request = tenant_pb2.ShareAdapterRequest(name=adapter_name(tenant_id, adapter))
    return Call(
        f"{_SERVICE}/ShareAdapter", request, tenant_pb2.ShareAdapterResponse, lambda r: str(r.shared_adapter.adapter)
    )


def unshare_adapter(tenant_id: str, adapter: str) -> Call[None]:
    """TenantService.UnshareAdapter."""
    request = tenant_pb2.UnshareAdapterRequest(name=adapter_name(tenant_id, adapter))
    return Call(f"{_SERVICE}/UnshareAdapter", request, tenant_pb2.UnshareAdapterResponse, lambda _: None)


def list_shared() -> Call[list[str]]:
    """TenantService.ListSharedAdapters: full names."""
    return Call(
        f"{_SERVICE}/ListSharedAdapters",
        tenant_pb2.ListSharedAdaptersRequest(),
        tenant_pb2.ListSharedAdaptersResponse,
        lambda r: [s.adapter for s in r.shared_adapters],
    )
