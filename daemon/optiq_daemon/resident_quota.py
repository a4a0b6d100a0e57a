"""The quota of adapter bytes in the engine: a tenant beyond it gives up its own idle adapters first."""

from __future__ import annotations

from collections.abc import Collection

from optiq_daemon.quotas import QuotaGate, exceeded
from optiq_daemon.registry import Registry
from optiq_daemon.slots import Slot


class ResidentQuota:
    """Keeps tenants within their `resident_bytes`; lives on the event loop."""

    def __init__(self, registry: Registry, gate: QuotaGate) -> None:
        self._registry = registry
        self._gate = gate

    async def make_room(self, owner: str, digests: Collection[str]) -> None:
        """Let these versions of a tenant be in the engine, in place of its idle ones, the longest unused first.

        Raises:
            QuotaError: they do not fit beside those that requests use.
        """
        limit = self._gate.limits(owner).resident_bytes
        if not limit:
            return
        while (used := sum(slot.size for slot in self._slots(owner, digests))) > limit:
            idle = [slot for slot in self._slots(owner, ()) if slot.idle and not slot.leases]
            if not idle:
                what = f"{used} would be in use"
                raise exceeded(owner, "resident_bytes", limit, what, retry_seconds=1.0)
            await self._registry.residency.unload(min(idle, key=lambda slot: slot.used_at).digest)

    def _slots(self, owner: str, wanted: Collection[str]) -> list[Slot]:
        """The owner's versions that are in the engine or on their way there, and those that are wanted there."""
        versions = (one.digest for r in self._registry.records(owner) for one in self._registry.history.of(r.key))
        slots = (self._registry.residency.slot(digest) for digest in dict.fromkeys((*wanted, *versions)))
        return [slot for slot in slots if slot is not None and (slot.entered or slot.digest in wanted)]
