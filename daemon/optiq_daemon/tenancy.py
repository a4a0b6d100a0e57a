"""What one tenant has: counted for quotas and for people, cut out of the daemon's status, removed with it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path

from optiq_daemon.admission import Admission
from optiq_daemon.errors import RefusedError, UnavailableError
from optiq_daemon.ingest import Ingest
from optiq_daemon.jobs.queue import JobQueue
from optiq_daemon.names import DEFAULT_TENANT
from optiq_daemon.registry import Registry
from optiq_daemon.states import AdapterState
from optiq_protos.v1 import runtime_pb2, tenant_pb2

CANCEL_S = 30.0
# What is about the machine and its owner; a tenant has no use for it.
_OWNERS_FIELDS = ("home_path", "adapters_path", "pid", "process_memory_bytes")


class Tenancy:
    """Joins the tables that have something of a tenant.

    Args:
        drop: the drop folder.
    """

    def __init__(self, registry: Registry, ingest: Ingest, jobs: JobQueue, admission: Admission, drop: Path) -> None:
        self._registry = registry
        self._ingest = ingest
        self._jobs = jobs
        self._admission = admission
        self._drop = drop

    def load(self, tenant: str) -> tenant_pb2.TenantLoad:
        """Requests, adapters, bytes and jobs of a tenant now."""
        records = self._registry.records(tenant)
        return tenant_pb2.TenantLoad(
            running_requests=self._admission.running(tenant),
            queued_requests=self._admission.waiting(tenant),
            virtual_tokens=self._admission.served(tenant),
            adapter_count=len(records),
            resident_bytes=self.resident_bytes(tenant),
            disk_bytes=self.disk_bytes(tenant),
            open_jobs=self._jobs.open_count(tenant),
        )

    def disk_bytes(self, tenant: str, without: str = "") -> int:
        """Bytes of the versions that a tenant's names point to, one adapter left out."""
        records = self._registry.records(tenant)
        return sum(r.description.disk_bytes for r in records if r.description is not None and r.adapter != without)

    def resident_bytes(self, tenant: str) -> int:
        """Bytes in the engine of the versions that a tenant's names point to; a version with two names counts once."""
        digests = {record.digest for record in self._registry.records(tenant) if record.digest}
        slots = (self._registry.residency.slot(digest) for digest in digests)
        return sum(slot.resident_bytes for slot in slots if slot is not None)

    def view(self, status: runtime_pb2.RuntimeStatus, tenant: str) -> runtime_pb2.RuntimeStatus:
        """A status as a tenant sees it: its own adapters, jobs and requests, and the engine's speed."""
        seen = runtime_pb2.RuntimeStatus()
        seen.CopyFrom(status)
        for field in _OWNERS_FIELDS:
            seen.ClearField(field)
        seen.base.ClearField("path")
        seen.engine.ClearField("pid")
        records = self._registry.records(tenant)
        seen.adapter_count = len(records)
        quarantined = (self._registry.state(record.key) is AdapterState.QUARANTINED for record in records)
        seen.quarantined_adapter_count = sum(quarantined)
        running = [job for job in status.running_jobs if job.startswith(f"tenants/{tenant}/")]
        del seen.running_jobs[:]
        seen.running_jobs.extend(running)
        seen.running_job = running[0] if running else ""
        seen.queued_jobs = self._jobs.open_count(tenant) - len(running)
        own = [request for request in status.requests if request.tenant == tenant]
        del seen.requests[:]
        seen.requests.extend(own)
        return seen

    async def remove(self, tenant: str, force: bool) -> None:
        """Remove a tenant's adapters, folders and jobs.

        Raises:
            RefusedError: there are some, and `force` is not given.
            UnavailableError: a job did not end in time.
        """
        records = self._registry.records(tenant)
        jobs = self._jobs.page(tenant, 1, None)
        if (records or jobs) and not force:
            raise RefusedError(
                f"tenants/{tenant} has {len(records)} adapters and {'some' if jobs else 'no'} jobs; remove them first, "
                "or use force",
                reason="TENANT_NOT_EMPTY",
            )
        for record in self._jobs.open_jobs(tenant):
            await self._jobs.cancel(record.key)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._jobs.settled(tenant), CANCEL_S)
        if self._jobs.open_count(tenant):
            raise UnavailableError(f"a job of tenants/{tenant} is still ending; try again", reason="JOB_ENDING")
        while page := self._jobs.page(tenant, 100, None):
            for record in page:
                await self._jobs.delete(record.key)
        for key in [record.key for record in records]:
            await self._ingest.remove(key)
        if tenant != DEFAULT_TENANT:
            await asyncio.to_thread(shutil.rmtree, self._drop / tenant, ignore_errors=True)
