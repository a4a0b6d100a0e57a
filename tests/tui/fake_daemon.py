"""An optiq.v1 server with no engine behind it: it answers from what a test puts into it, and only that.

Everything runs in one event loop; :class:`FakeDaemonThread` gives it a loop of its own for synchronous callers.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from optiq_protos.v1 import (
    adapter_pb2,
    adapter_pb2_grpc,
    event_pb2,
    event_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    route_pb2_grpc,
    runtime_pb2,
    runtime_pb2_grpc,
    tenant_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)
from tests.tui.fake_routing import FakeRoutes, FakeTenants

T = TypeVar("T")
ENDED = {
    training_pb2.JOB_STATE_SUCCEEDED,
    training_pb2.JOB_STATE_FAILED,
    training_pb2.JOB_STATE_CANCELLED,
    training_pb2.JOB_STATE_REFUSED,
}


async def fail(context: Any, code: int, message: str, reason: str = "", *details: Any) -> None:
    """End the call with a google.rpc.Status that carries details."""
    packed = [any_pb2.Any() for _ in range(len(details) + bool(reason))]
    info = [error_details_pb2.ErrorInfo(reason=reason, domain="optiq", metadata={"fake": "yes"})] if reason else []
    for holder, detail in zip(packed, [*info, *details], strict=True):
        holder.Pack(detail)
    await context.abort_with_status(rpc_status.to_status(status_pb2.Status(code=code, message=message, details=packed)))


class Broadcast:
    """Fan-out of messages to the streams that are open now."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[Any]] = set()

    def send(self, message: Any) -> None:
        for queue in self._queues:
            queue.put_nowait(message)

    async def receive(self, first: Sequence[Any] = ()) -> AsyncIterator[Any]:
        queue: asyncio.Queue[Any] = asyncio.Queue()
        for message in first:
            queue.put_nowait(message)
        self._queues.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._queues.discard(queue)


class FakeDaemon(
    adapter_pb2_grpc.AdapterServiceServicer,
    training_pb2_grpc.TrainingServiceServicer,
    runtime_pb2_grpc.RuntimeServiceServicer,
    event_pb2_grpc.EventServiceServicer,
    generation_pb2_grpc.GenerationServiceServicer,
):
    """All services over plain dictionaries. Setters push to the open watches."""

    def __init__(self) -> None:
        self.status = runtime_pb2.RuntimeStatus()
        self.adapters: dict[str, adapter_pb2.Adapter] = {}
        self.jobs: dict[str, training_pb2.TrainingJob] = {}
        # Lines of trainers' logs, by job.
        self.logs: dict[str, list[str]] = {}
        self.progress: dict[str, list[training_pb2.TrainingProgress]] = {}
        self.events: list[event_pb2.Event] = []
        self.reply = ["X", "I", "I"]
        self.replies: dict[str, list[str]] = {}
        self.piece_delay = 0.0
        self.calls: list[Any] = []
        self.cancelled_generations = 0
        self.fail_next_get_status = 0
        self.refuse_token = False
        # Connections are taken, and nothing is answered.
        self.silent = False
        # Statuses that a new watch gets before the present one: what sparklines are made of.
        self.past: list[runtime_pb2.RuntimeStatus] = []
        self.versions: dict[str, list[adapter_pb2.AdapterVersion]] = {}
        self.ranks: dict[str, int] = {}
        self.plan: training_pb2.TrainingPlan | None = None
        self.routing = FakeRoutes()
        self.tenancy = FakeTenants()
        self._adapter_changes = Broadcast()
        self._job_changes = Broadcast()
        self._event_feed = Broadcast()
        self._status_feed = Broadcast()
        self._server: grpc.aio.Server | None = None

    # Server

    async def start(self, address: str) -> None:
        """Serve on ``unix:/path`` or ``host:port``."""
        server = grpc.aio.server()
        adapter_pb2_grpc.add_AdapterServiceServicer_to_server(self, server)
        training_pb2_grpc.add_TrainingServiceServicer_to_server(self, server)
        runtime_pb2_grpc.add_RuntimeServiceServicer_to_server(self, server)
        event_pb2_grpc.add_EventServiceServicer_to_server(self, server)
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(self, server)
        route_pb2_grpc.add_RouteServiceServicer_to_server(self.routing, server)
        tenant_pb2_grpc.add_TenantServiceServicer_to_server(self.tenancy, server)
        self.health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        await self.health.set("", health_pb2.HealthCheckResponse.SERVING)
        server.add_insecure_port(address)
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Go away at once, as a killed daemon does."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    # Setters

    def put_adapter(self, adapter: adapter_pb2.Adapter) -> None:
        self.adapters[adapter.name] = adapter
        self._adapter_changes.send(
            adapter_pb2.WatchAdaptersResponse(
                type=adapter_pb2.WatchAdaptersResponse.CHANGE_TYPE_CHANGED, adapter=adapter
            )
        )

    def drop_adapter(self, name: str) -> None:
        self._adapter_changes.send(
            adapter_pb2.WatchAdaptersResponse(
                type=adapter_pb2.WatchAdaptersResponse.CHANGE_TYPE_DELETED, adapter=self.adapters.pop(name)
            )
        )

    def put_job(self, job: training_pb2.TrainingJob, *, report: bool = False) -> None:
        """Set a job; with ``report``, its progress is also one new point of its curve."""
        self.jobs[job.name] = job
        response = training_pb2.WatchTrainingJobResponse(job=job)
        if report:
            self.progress.setdefault(job.name, []).append(job.progress)
            response.progress.CopyFrom(job.progress)
        self._job_changes.send(response)

    def put_event(self, event: event_pb2.Event) -> None:
        self.events.append(event)
        self._event_feed.send(event)

    def put_status(self, status: runtime_pb2.RuntimeStatus) -> None:
        self.status = status
        self._status_feed.send(status)

    # AdapterService

    async def ListAdapters(self, request: Any, context: Any) -> Any:
        """Two a page, whatever is asked, so that paging is always exercised."""
        names = sorted(self.adapters)
        start = int(request.page_token or 0)
        page = names[start : start + 2]
        more = str(start + 2) if start + 2 < len(names) else ""
        return adapter_pb2.ListAdaptersResponse(adapters=[self.adapters[n] for n in page], next_page_token=more)

    async def _adapter(self, name: str, context: Any) -> adapter_pb2.Adapter:
        if name not in self.adapters:
            await fail(context, code_pb2.NOT_FOUND, f"no adapter {name}", "ADAPTER_NOT_FOUND")
        return self.adapters[name]

    async def GetAdapter(self, request: Any, context: Any) -> Any:
        return adapter_pb2.GetAdapterResponse(adapter=await self._adapter(request.name, context))

    async def ImportAdapter(self, request: Any, context: Any) -> Any:
        self.calls.append(request)
        if not request.adapter_id.isalnum():
            violation = error_details_pb2.BadRequest.FieldViolation(
                field="adapter_id", description="must match ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"
            )
            await fail(
                context,
                code_pb2.INVALID_ARGUMENT,
                "the request is wrong",
                "INVALID_FIELD",
                error_details_pb2.BadRequest(field_violations=[violation]),
            )
        adapter = adapter_pb2.Adapter(
            name=f"{request.parent}/adapters/{request.adapter_id}",
            state=adapter_pb2.ADAPTER_STATE_RESIDENT,
            source_path=request.source_path,
        )
        self.put_adapter(adapter)
        return adapter_pb2.ImportAdapterResponse(adapter=adapter)

    async def DeleteAdapter(self, request: Any, context: Any) -> Any:
        self.calls.append(request)
        await self._adapter(request.name, context)
        self.drop_adapter(request.name)
        return adapter_pb2.DeleteAdapterResponse()

    async def _set_state(self, request: Any, context: Any, state: int) -> adapter_pb2.Adapter:
        self.calls.append(request)
        adapter = adapter_pb2.Adapter()
        adapter.CopyFrom(await self._adapter(request.name, context))
        adapter.state = state  # type: ignore[assignment]
        self.put_adapter(adapter)
        return adapter

    async def LoadAdapter(self, request: Any, context: Any) -> Any:
        adapter = await self._set_state(request, context, adapter_pb2.ADAPTER_STATE_RESIDENT)
        return adapter_pb2.LoadAdapterResponse(adapter=adapter)

    async def UnloadAdapter(self, request: Any, context: Any) -> Any:
        adapter = await self._set_state(request, context, adapter_pb2.ADAPTER_STATE_AVAILABLE)
        return adapter_pb2.UnloadAdapterResponse(adapter=adapter)

    async def _change(self, request: Any, context: Any, **values: Any) -> adapter_pb2.Adapter:
        self.calls.append(request)
        adapter = adapter_pb2.Adapter()
        adapter.CopyFrom(await self._adapter(request.name, context))
        for field, value in values.items():
            setattr(adapter, field, value)
        self.put_adapter(adapter)
        return adapter

    async def PinAdapter(self, request: Any, context: Any) -> Any:
        return adapter_pb2.PinAdapterResponse(adapter=await self._change(request, context, pinned=True))

    async def UnpinAdapter(self, request: Any, context: Any) -> Any:
        return adapter_pb2.UnpinAdapterResponse(adapter=await self._change(request, context, pinned=False))

    async def RollbackAdapter(self, request: Any, context: Any) -> Any:
        number = int(request.version.removeprefix("v"))
        return adapter_pb2.RollbackAdapterResponse(adapter=await self._change(request, context, version=number))

    async def ListAdapterVersions(self, request: Any, context: Any) -> Any:
        await self._adapter(request.parent, context)
        return adapter_pb2.ListAdapterVersionsResponse(versions=self.versions.get(request.parent, []))

    async def ListAdapterModules(self, request: Any, context: Any) -> Any:
        await self._adapter(request.parent, context)
        modules = [adapter_pb2.AdapterModule(path=path, rank=rank, scale=20) for path, rank in self.ranks.items()]
        return adapter_pb2.ListAdapterModulesResponse(modules=modules)

    async def WatchAdapters(self, request: Any, context: Any) -> AsyncIterator[Any]:
        kinds = adapter_pb2.WatchAdaptersResponse
        first = [kinds(type=kinds.CHANGE_TYPE_LISTED, adapter=a) for a in self.adapters.values()]
        first.append(kinds(type=kinds.CHANGE_TYPE_LIST_END))
        async for change in self._adapter_changes.receive(first):
            yield change

    # TrainingService

    async def _job(self, name: str, context: Any) -> training_pb2.TrainingJob:
        if name not in self.jobs:
            await fail(context, code_pb2.NOT_FOUND, f"no job {name}", "JOB_NOT_FOUND")
        return self.jobs[name]

    async def CreateTrainingJob(self, request: Any, context: Any) -> Any:
        self.calls.append(request)
        job = training_pb2.TrainingJob(
            name=f"{request.parent}/jobs/job-{len(self.jobs) + 1}",
            state=training_pb2.JOB_STATE_QUEUED,
            adapter_id=request.adapter_id,
            config=request.config,
        )
        self.put_job(job)
        return training_pb2.CreateTrainingJobResponse(job=job)

    async def PlanTrainingJob(self, request: Any, context: Any) -> Any:
        self.calls.append(request)
        if self.plan is None:
            await fail(context, code_pb2.FAILED_PRECONDITION, "the engine is not serving", "ENGINE_RESTARTING")
        return training_pb2.PlanTrainingJobResponse(plan=self.plan)

    async def GetTrainingJob(self, request: Any, context: Any) -> Any:
        return training_pb2.GetTrainingJobResponse(job=await self._job(request.name, context))

    async def ListTrainingJobs(self, request: Any, context: Any) -> Any:
        return training_pb2.ListTrainingJobsResponse(jobs=list(self.jobs.values()))

    async def CancelTrainingJob(self, request: Any, context: Any) -> Any:
        self.calls.append(request)
        job = training_pb2.TrainingJob()
        job.CopyFrom(await self._job(request.name, context))
        job.state = training_pb2.JOB_STATE_CANCELLED
        self.put_job(job)
        return training_pb2.CancelTrainingJobResponse(job=job)

    async def PauseTrainingJob(self, request: Any, context: Any) -> Any:
        return training_pb2.PauseTrainingJobResponse(
            job=await self._to(request, context, training_pb2.JOB_STATE_PAUSED)
        )

    async def ResumeTrainingJob(self, request: Any, context: Any) -> Any:
        return training_pb2.ResumeTrainingJobResponse(
            job=await self._to(request, context, training_pb2.JOB_STATE_QUEUED)
        )

    async def _to(self, request: Any, context: Any, state: int) -> training_pb2.TrainingJob:
        self.calls.append(request)
        job = training_pb2.TrainingJob()
        job.CopyFrom(await self._job(request.name, context))
        job.state = state  # type: ignore[assignment]
        self.put_job(job)
        return job

    async def DeleteTrainingJob(self, request: Any, context: Any) -> Any:
        await self._job(request.name, context)
        del self.jobs[request.name]
        return training_pb2.DeleteTrainingJobResponse()

    async def WatchTrainingJob(self, request: Any, context: Any) -> AsyncIterator[Any]:
        job = await self._job(request.name, context)
        reply = training_pb2.WatchTrainingJobResponse
        replayed = [reply(job=job, progress=p) for p in self.progress.get(request.name, [])] or [reply(job=job)]
        if job.state in ENDED:
            for update in replayed:
                yield update
            return
        # Subscribed before the first is sent: an update between the two would be lost.
        async for update in self._job_changes.receive(replayed):
            if update.job.name == request.name:
                yield update
                if update.job.state in ENDED:
                    return

    async def TailTrainingLog(self, request: Any, context: Any) -> AsyncIterator[Any]:
        job = await self._job(request.name, context)
        yield training_pb2.TailTrainingLogResponse(lines=self.logs.get(request.name, []))
        if request.follow and job.state not in ENDED:
            await asyncio.Event().wait()

    # RuntimeService and EventService

    async def GetStatus(self, request: Any, context: Any) -> Any:
        if self.silent:
            await asyncio.Event().wait()
        if self.refuse_token:
            await fail(context, code_pb2.UNAUTHENTICATED, "the token is not known", "TOKEN_UNKNOWN")
        if self.fail_next_get_status:
            self.fail_next_get_status -= 1
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(1500)
            await fail(context, code_pb2.UNAVAILABLE, "the engine is restarting", "ENGINE_RESTARTING", retry)
        return runtime_pb2.GetStatusResponse(status=self.status)

    async def WatchTelemetry(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """The status now, then each one that a test sets: no clock, so that snapshots repeat."""
        async for status in self._status_feed.receive([*self.past, self.status]):
            yield runtime_pb2.WatchTelemetryResponse(status=status)

    async def WatchEvents(self, request: Any, context: Any) -> AsyncIterator[Any]:
        oldest = self.events[0].revision if self.events else 1
        if request.from_revision and request.from_revision < oldest:
            await fail(context, code_pb2.OUT_OF_RANGE, f"revisions start at {oldest}", "REVISION_COMPACTED")
        first = [e for e in self.events if request.from_revision and e.revision >= request.from_revision]
        async for event in self._event_feed.receive(first):
            yield event_pb2.WatchEventsResponse(event=event)

    # GenerationService

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.calls.append(request)
        asked = request.adapter or "+".join(part.name for part in request.adapters) or "base"
        reply = self.replies.get(asked, self.reply)
        name = f"{request.parent}/adapters/{request.adapter}" if request.adapter else ""
        if name and name not in self.adapters:
            await fail(context, code_pb2.NOT_FOUND, f"no adapter {name}", "ADAPTER_NOT_FOUND")
        event = generation_pb2.GenerateResponse
        yield event(queued=generation_pb2.Queued(position=1))
        digest = self.adapters[name].digest if name else ""
        yield event(
            started=generation_pb2.Started(
                request_id=request.request_id or "generated-id",
                adapter=name,
                adapter_digest=digest,
                prompt_tokens=12,
                cached_tokens=4,
                adapters=[generation_pb2.ServedAdapter(name=name, digest=digest, weight=1)] if name else [],
            )
        )
        try:
            for index, piece in enumerate(reply):
                yield event(chunk=generation_pb2.Chunk(text=piece, token_ids=[index]))
                await asyncio.sleep(self.piece_delay)
        except asyncio.CancelledError:
            self.cancelled_generations += 1
            raise
        yield event(
            finished=generation_pb2.Finished(
                reason=generation_pb2.FINISH_REASON_STOP,
                usage=generation_pb2.Usage(prompt_tokens=12, completion_tokens=len(reply), cached_tokens=4),
                timings=generation_pb2.Timings(time_to_first_token_ms=41.5, tokens_per_second=33.25),
                batch=generation_pb2.BatchStats(max_rows=4, max_adapters=3, steps=3),
            )
        )


class FakeDaemonThread:
    """A FakeDaemon in a thread with its own event loop."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.daemon = FakeDaemon()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def do(self, action: Callable[[], T]) -> T:
        """Run a setter inside the daemon's loop."""

        async def run() -> T:
            return action()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    def start(self) -> None:
        asyncio.run_coroutine_threadsafe(self.daemon.start(self.address), self._loop).result(10)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.daemon.stop(), self._loop).result(10)

    def __enter__(self) -> FakeDaemonThread:
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
