"""`optiq.v1.TrainingService`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from optiq_daemon import convert
from optiq_daemon.errors import InvalidRequestError, NotFoundError
from optiq_daemon.jobs.queue import JobQueue
from optiq_daemon.names import check_id, parse_job, parse_parent
from optiq_daemon.store import Store
from optiq_protos.v1 import training_pb2, training_pb2_grpc

MAX_REQUEST_ID = 128
DEFAULT_LOG_LINES, MAX_LOG_LINES = 100, 10_000


class TrainingService(training_pb2_grpc.TrainingServiceServicer):
    """Translates between the wire and the job queue."""

    def __init__(self, jobs: JobQueue, store: Store) -> None:
        self._jobs = jobs
        self._store = store

    async def CreateTrainingJob(
        self, request: training_pb2.CreateTrainingJobRequest, _: Any
    ) -> training_pb2.CreateTrainingJobResponse:
        """Check and queue a job."""
        tenant = self._tenant(request.parent)
        adapter_id = check_id(request.adapter_id, "adapter_id")
        if len(request.request_id) > MAX_REQUEST_ID:
            raise InvalidRequestError.of("request_id", f"at most {MAX_REQUEST_ID} characters")
        config = convert.train_config(request.config)
        _check_data_path(config.data_path)
        schedule = convert.schedule(request.schedule, tenant)
        record = self._jobs.create(
            tenant,
            adapter_id,
            config,
            request_id=request.request_id,
            schedule=schedule,
            publication=convert.publication(request.publication),
        )
        return training_pb2.CreateTrainingJobResponse(job=convert.job(record))

    async def PlanTrainingJob(
        self, request: training_pb2.PlanTrainingJobRequest, _: Any
    ) -> training_pb2.PlanTrainingJobResponse:
        """A dry run."""
        self._tenant(request.parent)
        config = convert.train_config(request.config)
        _check_data_path(config.data_path)
        return training_pb2.PlanTrainingJobResponse(plan=convert.plan(await self._jobs.plan(config)))

    async def GetTrainingJob(
        self, request: training_pb2.GetTrainingJobRequest, _: Any
    ) -> training_pb2.GetTrainingJobResponse:
        """One job."""
        return training_pb2.GetTrainingJobResponse(job=convert.job(self._jobs.get(parse_job(request.name))))

    async def ListTrainingJobs(
        self, request: training_pb2.ListTrainingJobsRequest, _: Any
    ) -> training_pb2.ListTrainingJobsResponse:
        """A page, newest first."""
        tenant = self._tenant(request.parent)
        size = convert.page_size(request.page_size)
        scope = f"jobs/{tenant}"
        before = convert.page_cursor(scope, request.page_token, tuple[float, str])
        records = self._jobs.page(tenant, size + 1, before)
        page = records[:size]
        more = convert.page_token(scope, [page[-1].create_time, page[-1].id]) if len(records) > size else ""
        return training_pb2.ListTrainingJobsResponse(jobs=[convert.job(r) for r in page], next_page_token=more)

    async def CancelTrainingJob(
        self, request: training_pb2.CancelTrainingJobRequest, _: Any
    ) -> training_pb2.CancelTrainingJobResponse:
        """End a job at its next step."""
        record = await self._jobs.cancel(parse_job(request.name))
        return training_pb2.CancelTrainingJobResponse(job=convert.job(record))

    async def UpdateTrainingJob(
        self, request: training_pb2.UpdateTrainingJobRequest, _: Any
    ) -> training_pb2.UpdateTrainingJobResponse:
        """Change the fields of the mask."""
        key = parse_job(request.job.name, "job.name")
        given = convert.schedule(request.job.schedule, key.tenant)
        mask = set(request.update_mask.paths) or {"schedule"}
        fields = {f"schedule.{name}": name for name in given.__struct_fields__}
        if unknown := sorted(mask - set(fields) - {"schedule"}):
            known = ", ".join(("schedule", *fields))
            raise InvalidRequestError.of("update_mask", f"{', '.join(unknown)}: not one of {known}")
        if "schedule" not in mask:
            changes = {name: getattr(given, name) for path, name in fields.items() if path in mask}
            given = msgspec.structs.replace(self._jobs.get(key).schedule, **changes)
        record = self._jobs.reschedule(key, given, request.job.etag)
        return training_pb2.UpdateTrainingJobResponse(job=convert.job(record))

    async def PauseTrainingJob(
        self, request: training_pb2.PauseTrainingJobRequest, _: Any
    ) -> training_pb2.PauseTrainingJobResponse:
        """Hold a job."""
        record = await self._jobs.pause(parse_job(request.name))
        return training_pb2.PauseTrainingJobResponse(job=convert.job(record))

    async def ResumeTrainingJob(
        self, request: training_pb2.ResumeTrainingJobRequest, _: Any
    ) -> training_pb2.ResumeTrainingJobResponse:
        """Let a held job go on."""
        record = await self._jobs.resume(parse_job(request.name))
        return training_pb2.ResumeTrainingJobResponse(job=convert.job(record))

    async def PublishTrainingJob(
        self, request: training_pb2.PublishTrainingJobRequest, _: Any
    ) -> training_pb2.PublishTrainingJobResponse:
        """Publish what a gate kept."""
        record = await self._jobs.publish(parse_job(request.name))
        return training_pb2.PublishTrainingJobResponse(job=convert.job(record))

    async def DeleteTrainingJob(
        self, request: training_pb2.DeleteTrainingJobRequest, _: Any
    ) -> training_pb2.DeleteTrainingJobResponse:
        """Remove a job that has ended."""
        await self._jobs.delete(parse_job(request.name))
        return training_pb2.DeleteTrainingJobResponse()

    async def WatchTrainingJob(
        self, request: training_pb2.WatchTrainingJobRequest, _: Any
    ) -> AsyncIterator[training_pb2.WatchTrainingJobResponse]:
        """Progress so far, then live, to the job's end."""
        async for record, report in self._jobs.watch(parse_job(request.name)):
            progress = convert.progress(report) if report is not None else None
            yield training_pb2.WatchTrainingJobResponse(job=convert.job(record), progress=progress)

    async def TailTrainingLog(
        self, request: training_pb2.TailTrainingLogRequest, _: Any
    ) -> AsyncIterator[training_pb2.TailTrainingLogResponse]:
        """The end of the trainer's log, then what is added."""
        key = parse_job(request.name)
        if not -1 <= request.lines <= MAX_LOG_LINES:
            raise InvalidRequestError.of("lines", f"must be -1 to {MAX_LOG_LINES}, is {request.lines}")
        lines = max(0, request.lines) if request.lines else DEFAULT_LOG_LINES
        async for added in self._jobs.log(key, lines, follow=request.follow):
            yield training_pb2.TailTrainingLogResponse(lines=added)

    def _tenant(self, parent: str) -> str:
        tenant = parse_parent(parent)
        if not self._store.has_tenant(tenant):
            raise NotFoundError("tenant", f"tenants/{tenant}", f"there is no tenant {tenant!r}")
        return tenant


def _check_data_path(text: str) -> None:
    """The quick part of the check; the rest is done before the job runs."""
    path = Path(text)
    if "\0" in text or not path.is_absolute():
        raise InvalidRequestError.of("config.data_path", "must be an absolute path of a folder on the daemon's machine")
    if not (path / "train.jsonl").is_file() and not path.is_file():
        raise InvalidRequestError.of("config.data_path", f"{path} must be a folder with train.jsonl, or such a file")
