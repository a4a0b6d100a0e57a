"""Which adapter serves a request: the caller's own, or one that is shared."""

from __future__ import annotations

from optiq_daemon.identity import caller
from optiq_daemon.names import AdapterKey, parse_adapter
from optiq_daemon.registry import Registry, Resolved, not_found
from optiq_daemon.tenants import Tenants, unknown_tenant


class Router:
    """Resolves the names that requests use; lives on the event loop."""

    def __init__(self, registry: Registry, tenants: Tenants) -> None:
        self._registry = registry
        self._tenants = tenants

    def acquire(self, tenant: str, adapter: str, digest: str) -> Resolved:
        """Resolve a request's adapter, once, and lease its version. An empty adapter is the bare base.

        Args:
            tenant: whom the request acts for.
            adapter: an id, of the tenant's own adapter or else of a shared one, or a full name.

        Raises:
            NotFoundError: no such tenant, name, or version, or none that the caller may see.
            RefusedError: the name is quarantined, or not installed yet, and has no version.
        """
        key = self._key(tenant, adapter)
        if tenant not in self._tenants:
            raise unknown_tenant(tenant)
        return self._registry.acquire(key.tenant, key.adapter, digest)

    def _key(self, tenant: str, adapter: str) -> AdapterKey:
        if not adapter.startswith("tenants/"):
            own = AdapterKey(tenant, adapter)
            if adapter and self._registry.find(own) is None and (owner := self._tenants.shared_owner(adapter)):
                return AdapterKey(owner, adapter)
            return own
        key = parse_adapter(adapter, "adapter")
        if not caller().sees(key.tenant) and self._tenants.shared_owner(key.adapter) != key.tenant:
            raise not_found(key)
        return key
