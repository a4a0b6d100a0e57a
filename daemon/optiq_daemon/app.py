"""The daemon's parts, put together: what starts after what, and what stops before what."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from importlib import metadata
from pathlib import Path

from optiq_client import paths
from optiq_core.adapters.manifest import ModuleShape
from optiq_core.base.embedded import MODEL_NAME
from optiq_core.base.loader import EMBEDDED
from optiq_core.errors import OptiqError
from optiq_core.planner.calibration import calibration_path
from optiq_daemon import convert, telemetry
from optiq_daemon.admission import Admission
from optiq_daemon.auth import Gatekeeper
from optiq_daemon.base_info import BaseInfo
from optiq_daemon.blobs import Blobs
from optiq_daemon.children import Child
from optiq_daemon.config import Settings, http_is_public, is_public
from optiq_daemon.engine_client import EngineClient
from optiq_daemon.errors import UnavailableError
from optiq_daemon.events import EventLog
from optiq_daemon.generations import Generations
from optiq_daemon.ingest import Ingest
from optiq_daemon.jobs.queue import JobQueue, Limits
from optiq_daemon.live import LiveTable
from optiq_daemon.names import AdapterKey
from optiq_daemon.observers import Ended, Observed
from optiq_daemon.quotas import QuotaGate
from optiq_daemon.registry import Registry
from optiq_daemon.router import Router
from optiq_daemon.routes import Routes
from optiq_daemon.scope import Scope
from optiq_daemon.shadow import Shadows
from optiq_daemon.states import AdapterState, EngineState
from optiq_daemon.store import Store
from optiq_daemon.supervisor import EngineSupervisor
from optiq_daemon.tasks import Tasks
from optiq_daemon.tenancy import Tenancy
from optiq_daemon.tenants import TenantRecord, Tenants
from optiq_daemon.usage import DAY_S, UsageTable
from optiq_daemon.version_catalog import Retention
from optiq_daemon.watcher import DropWatcher
from optiq_protos.internal.v1 import engine_pb2
from optiq_protos.v1 import generation_pb2, runtime_pb2

log = logging.getLogger(__name__)

VERSION = metadata.version("optiq")
ENGINE_MODULE = "optiq_daemon.engine_process"
STATUS_CACHE_S = 0.1
# Adapters are served even where the base leaves nothing by the numbers.
SMALLEST_BUDGET = 64_000_000


class App:
    """One daemon without its public server. The home's folders exist and its lock is held.

    Args:
        mounts: adapter folders to import once the engine serves, by key.
    """

    def __init__(self, settings: Settings, mounts: dict[AdapterKey, Path] | None = None) -> None:
        home = settings.home_path
        self.settings = settings
        self.start_time = time.time()
        self.store = Store(paths.database_path(home))
        self.events = EventLog(self.store)
        self.tenants = Tenants(self.store, self.events)
        self.usage = UsageTable(self.store)
        self.quotas = QuotaGate(self.tenants)
        self.gatekeeper = Gatekeeper(
            self.tenants,
            Scope(self.tenants, paths.adapters_path(home)),
            require_tokens=settings.require_tokens,
            public=is_public(settings) or http_is_public(settings),
        )
        retention = Retention(settings.keep_versions, settings.keep_alive_s, settings.keep_versions_days * DAY_S)
        self.registry = Registry(self.store, self.events, Blobs(paths.store_path(home)), retention)
        self.live = LiveTable(settings.max_batch + settings.max_queue)
        sampling = generation_pb2.SamplingParams(
            temperature=settings.default_temperature, top_p=settings.default_top_p, top_k=settings.default_top_k
        )
        self.admission = Admission(
            settings.max_batch,
            settings.max_queue,
            self.quotas,
            weight=self._weight,
            tenants=lambda: len(self.tenants),
        )
        self.routes = Routes(
            self.store,
            self.events,
            lambda tenant, adapter: self.registry.find(AdapterKey(tenant, adapter)) is not None,
        )
        self.registry.watchers.is_shared = self.tenants.is_shared
        self.registry.history.is_held = lambda one: self.routes.names_version(one.adapter, one.number, one.digest)
        self.router = Router(self.registry, self.tenants, self.routes, self.events)
        self.shadows = Shadows(self.store, self.admission)
        generations = Generations(
            self.registry,
            self.router,
            live=self.live,
            gate=self.quotas,
            admission=self.admission,
            engine=lambda: self.engine.client,
            default_max_tokens=settings.default_max_tokens,
            default_sampling=sampling,
            shadows=self.shadows,
        )
        self.generations = Observed(generations.serve)
        self.generations.observe(self._count)
        drop = paths.adapters_path(home)
        self.ingest = Ingest(self.registry, drop, again=self._again, check_disk=self._check_disk, busy=self._generating)
        self.watcher = DropWatcher(
            drop,
            settle_s=settings.settle_ms / 1000,
            reconcile_s=settings.reconcile_interval_s,
            polling=settings.watch == "polling",
            known=lambda: [record.key for record in self.registry.records()],
            on_tenant=self._tenant_seen,
            on_change=self.ingest.discovered,
            on_settled=self.ingest.settled,
            on_ignored=self._ignored,
        )
        # Admission is counted here. The engine's own bound is looser: a burst is in its queue before it is in the
        # batch, and a cancelled request leaves a step after its place here is free.
        places = settings.max_batch + settings.max_queue
        batch = ["--max-batch", str(settings.max_batch), "--max-queue", str(2 * places)]
        loading = ["--load-in", settings.load_in] if settings.load_in else []
        kv = ["--kv-config", str(Path(settings.kv_config).expanduser().absolute())] if settings.kv_config else []
        caches = ["--kv", settings.kv, *kv]
        batch += ["--prefill-chunk", str(settings.prefill_chunk), "--kv-cache-mb", str(settings.kv_cache_mb)]
        batch += ["--prefix-cache-mb", str(settings.prefix_cache_mb)]
        self.engine = EngineSupervisor(
            [ENGINE_MODULE, "--model", settings.model, *loading, *caches, *batch],
            home,
            paths.logs_path(home) / "engine.log",
            self.events,
            on_up=self._engine_up,
            on_down=self.registry.engine_down,
        )
        self.jobs = JobQueue(
            self.store,
            self.events,
            self.engine,
            self.ingest,
            paths.jobs_path(home),
            limits=Limits(
                places=settings.training_jobs,
                slice_s=settings.training_slice_s,
                silence_s=settings.trainer_silence_s,
                attempts=settings.trainer_attempts,
                memory_bytes=int(settings.training_memory_mb * 1e6),
                load_in=settings.load_in,
                policy=settings.training_policy,
                latency_s=settings.training_latency_ms / 1000,
            ),
            registry=self.registry,
            routes=self.routes,
            live=self.live,
            calibration=calibration_path(),
            gate=self.quotas,
            weight=self._weight,
            usage=self.usage,
        )
        self.tenancy = Tenancy(self.registry, self.ingest, self.jobs, self.admission, drop)
        self._mounts = dict(mounts or {})
        self._tasks = Tasks()
        self._status: tuple[float, runtime_pb2.RuntimeStatus] | None = None

    async def start(self) -> None:
        """Reconcile store and disk, then start engine, watcher and queue."""
        self.events.append("daemon.started", "", f"version {VERSION}", {"pid": str(os.getpid())})
        self.registry.restore()
        await asyncio.to_thread(self.ingest.tidy)
        self.engine.start()
        await self.watcher.start()
        self.jobs.start()

    async def drain(self, seconds: float) -> None:
        """Let no more requests in, wait for those that run, and have the trainer save its checkpoint."""
        self.live.refuse()

        async def requests() -> None:
            try:
                await asyncio.wait_for(self.live.empty(), seconds)
            except TimeoutError:
                log.warning("%d requests were still running after %g s", len(self.live.requests()), seconds)

        await asyncio.gather(requests(), self.jobs.drain(seconds))

    async def close(self) -> None:
        """Stop everything, in the order that nobody misses what is gone."""
        await self._tasks.cancel()
        await self.shadows.close()
        await self.jobs.drain(0)
        await self.watcher.stop()
        await self.ingest.close()
        await self.engine.stop()
        await self.registry.close()
        self.events.append("daemon.stopped")
        self.store.close()

    async def status(self) -> runtime_pb2.RuntimeStatus:
        """A status that is at most a tenth of a second old."""
        if self._status is not None and time.monotonic() - self._status[0] < STATUS_CACHE_S:
            return self._status[1]
        status = await self._take_status()
        self._status = time.monotonic(), status
        return status

    async def _engine_up(self, client: EngineClient, base: engine_pb2.GetBaseResponse) -> None:
        modules = {m.path: ModuleShape(m.input_dims, m.output_dims, m.kind, m.experts) for m in base.modules}
        names = (f"optiq/{MODEL_NAME}" if self.settings.model == EMBEDDED else self.settings.model,)
        info = BaseInfo(base.digest, modules, names, strict=self.settings.base_mismatch == "refuse")
        await self.registry.engine_up(client, info, self._adapter_budget(base))
        for key, source in list(self._mounts.items()):
            try:
                await self.ingest.install(key, source)
            except UnavailableError:
                raise
            except (OptiqError, OSError) as error:
                self.events.append("adapter.import_failed", key.name, f"{source}: {error}")
            del self._mounts[key]
        self.ingest.base_known()

    def _adapter_budget(self, base: engine_pb2.GetBaseResponse) -> int:
        """Bytes of adapters that may be in the engine together."""
        if self.settings.adapter_budget_mb:
            return max(1, round(self.settings.adapter_budget_mb * 1e6))
        free = telemetry.memory_limit() - base.memory_bytes
        return max(free // 4, SMALLEST_BUDGET)

    def _again(self, key: AdapterKey) -> None:
        self.watcher.touch(key)

    async def remove_tenant(self, tenant: str, force: bool) -> None:
        """Remove what a tenant has, as :meth:`Tenancy.remove` does, and its routes."""
        await self.tenancy.remove(tenant, force)
        self.routes.forget(tenant)

    def _generating(self) -> bool:
        return bool(self.live.requests())

    def _weight(self, tenant: str) -> float:
        return self.tenants.find(tenant).weight

    def _count(self, ended: Ended) -> None:
        if ended.prompt_tokens:
            self.usage.add(
                ended.tenant,
                ended.owner,
                ended.adapter,
                requests=1,
                prompt_tokens=ended.prompt_tokens,
                cached_tokens=ended.cached_tokens,
                completion_tokens=ended.completion_tokens,
            )

    def _check_disk(self, key: AdapterKey, added: int) -> None:
        used = self.tenancy.disk_bytes(key.tenant, without=key.adapter)
        self.quotas.check(key.tenant, "disk_bytes", used, added, retry_seconds=60.0)

    def _tenant_seen(self, tenant: str) -> None:
        if tenant not in self.tenants:
            self.tenants.create(TenantRecord(id=tenant), "its folder appeared in the drop folder")

    def _ignored(self, path: Path, why: str) -> None:
        self.events.append("drop.ignored", "", f"{path.name}: {why}", {"path": str(path)})

    async def _take_status(self) -> runtime_pb2.RuntimeStatus:
        records = self.registry.records()
        children = [child.pid for child in self._children()]
        running = [run.record.key.name for run in self.jobs.running]
        return runtime_pb2.RuntimeStatus(
            version=VERSION,
            pid=os.getpid(),
            start_time=convert.timestamp(self.start_time),
            home_path=self.settings.home,
            adapters_path=str(paths.adapters_path(self.settings.home_path)),
            base=self._base_status(),
            device=self._device_status(),
            engine=await self._engine_status(),
            adapter_count=len(records),
            quarantined_adapter_count=sum(
                self.registry.state(record.key) is AdapterState.QUARANTINED for record in records
            ),
            queued_jobs=self.jobs.waiting(),
            running_job=running[0] if running else "",
            running_jobs=running,
            requests=[convert.live_request(request) for request in self.live.requests()],
            process_memory_bytes=await asyncio.to_thread(telemetry.process_memory, [os.getpid(), *children]),
            memory_limit_bytes=telemetry.memory_limit(),
        )

    def _children(self) -> list[Child]:
        trainers = [run.trainer.child for run in self.jobs.running if run.trainer is not None]
        return [child for child in (self.engine.child, *trainers) if child is not None]

    def _base_status(self) -> runtime_pb2.BaseStatus:
        status = runtime_pb2.BaseStatus(model=self.settings.model)
        if (base := self.engine.base) is not None:
            for field in ("path", "digest", "memory_bytes", "bits_per_weight", "layer_count", "max_context"):
                setattr(status, field, getattr(base, field))
        return status

    def _device_status(self) -> runtime_pb2.DeviceStatus | None:
        base = self.engine.base
        if base is None:
            return None
        return runtime_pb2.DeviceStatus(
            kind=base.device_kind, name=base.device_name, compute=base.compute, notes=base.notes
        )

    async def _engine_status(self) -> runtime_pb2.EngineStatus:
        engine = self.engine
        status = runtime_pb2.EngineStatus(
            state=runtime_pb2.EngineState.Name(engine.state),
            message=engine.message,
            pid=engine.child.pid if engine.child else 0,
            restarts=engine.restarts,
            adapter_budget_bytes=self.registry.residency.room.budget,
            adapter_evictions=self.registry.residency.room.evictions,
            waiting_for_room=self.registry.residency.room.waiting,
        )
        if engine.state is EngineState.SERVING:
            try:
                counters = await engine.client.status()
            except OptiqError as error:
                status.message = str(error)
            else:
                for field in counters.DESCRIPTOR.fields:
                    setattr(status, field.name, getattr(counters, field.name))
        return status
