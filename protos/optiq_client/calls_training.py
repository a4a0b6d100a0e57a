"""TrainingService as data, like :mod:`optiq_client.calls`."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from optiq_client import convert_jobs
from optiq_client import types as t
from optiq_client.calls import PAGE_SIZE, Call, Page, _nothing, tenant_name
from optiq_client.jobs import JobPublication, JobSchedule
from optiq_protos.v1 import training_pb2, training_queue_pb2

_SERVICE = "/optiq.v1.TrainingService"


def job_name(tenant: str, job: str) -> str:
    """``tenants/{tenant}/jobs/{job}`` for an id; a full name stays as it is."""
    return job if "/" in job else f"{tenant_name(tenant)}/jobs/{job}"


def create_job(
    tenant: str,
    adapter_id: str,
    config: t.TrainingConfig,
    *,
    schedule: JobSchedule,
    publication: JobPublication,
    request_id: str,
) -> Call[t.Job]:
    """TrainingService.CreateTrainingJob; a relative data path is taken from the caller's directory."""
    message = _training_config(config)
    request = training_pb2.CreateTrainingJobRequest(
        parent=tenant_name(tenant),
        adapter_id=adapter_id,
        config=message,
        request_id=request_id or str(uuid.uuid4()),  # makes grpc's own retries safe
        schedule=_schedule(tenant, schedule),
        publication=_publication(publication),
    )
    return Call(f"{_SERVICE}/CreateTrainingJob", request, training_pb2.CreateTrainingJobResponse, _job)


def plan_job(tenant: str, config: t.TrainingConfig) -> Call[t.TrainingPlan]:
    """TrainingService.PlanTrainingJob; a relative data path is taken from the caller's directory."""
    request = training_pb2.PlanTrainingJobRequest(parent=tenant_name(tenant), config=_training_config(config))
    return Call(
        f"{_SERVICE}/PlanTrainingJob",
        request,
        training_pb2.PlanTrainingJobResponse,
        lambda r: convert_jobs.training_plan(r.plan),
    )


def _publication(publication: JobPublication) -> training_queue_pb2.JobPublication:
    path = publication.gate_path
    return training_queue_pb2.JobPublication(
        route=publication.route,
        route_weight=publication.route_weight,
        gate=publication.gate or bool(path),
        gate_path=str(Path(path).absolute()) if path else "",
    )


def _schedule(tenant: str, schedule: JobSchedule) -> training_queue_pb2.JobSchedule:
    message = training_queue_pb2.JobSchedule(
        priority=schedule.priority, after=[job_name(tenant, job) for job in schedule.after]
    )
    if schedule.not_before is not None:
        message.not_before.FromDatetime(schedule.not_before)
    return message


def _training_config(config: t.TrainingConfig) -> training_pb2.TrainingConfig:
    message = convert_jobs.training_config_message(config)
    if message.data_path:
        message.data_path = str(Path(message.data_path).absolute())
    return message


def get_job(tenant: str, job: str) -> Call[t.Job]:
    """TrainingService.GetTrainingJob."""
    request = training_pb2.GetTrainingJobRequest(name=job_name(tenant, job))
    return Call(f"{_SERVICE}/GetTrainingJob", request, training_pb2.GetTrainingJobResponse, _job)


def list_jobs(tenant: str, page_token: str) -> Call[Page[t.Job]]:
    """TrainingService.ListTrainingJobs, one page."""
    return Call(
        f"{_SERVICE}/ListTrainingJobs",
        training_pb2.ListTrainingJobsRequest(parent=tenant_name(tenant), page_size=PAGE_SIZE, page_token=page_token),
        training_pb2.ListTrainingJobsResponse,
        lambda r: Page([convert_jobs.job(j) for j in r.jobs], r.next_page_token),
    )


def cancel_job(tenant: str, job: str) -> Call[t.Job]:
    """TrainingService.CancelTrainingJob."""
    request = training_pb2.CancelTrainingJobRequest(name=job_name(tenant, job))
    return Call(f"{_SERVICE}/CancelTrainingJob", request, training_pb2.CancelTrainingJobResponse, _job)


def update_job(
    tenant: str,
    job: str,
    *,
    priority: int | None,
    after: Sequence[str] | None,
    not_before: datetime | None,
    etag: str,
) -> Call[t.Job]:
    """TrainingService.UpdateTrainingJob with what is given."""
    given = {"priority": priority, "after": after, "not_before": not_before}
    mask = [f"schedule.{name}" for name, value in given.items() if value is not None]
    schedule = JobSchedule(priority or 0, tuple(after or ()), not_before)
    message = training_pb2.TrainingJob(name=job_name(tenant, job), etag=etag, schedule=_schedule(tenant, schedule))
    request = training_pb2.UpdateTrainingJobRequest(job=message, update_mask=FieldMask(paths=mask))
    return Call(f"{_SERVICE}/UpdateTrainingJob", request, training_pb2.UpdateTrainingJobResponse, _job)


def pause_job(tenant: str, job: str) -> Call[t.Job]:
    """TrainingService.PauseTrainingJob."""
    request = training_pb2.PauseTrainingJobRequest(name=job_name(tenant, job))
    return Call(f"{_SERVICE}/PauseTrainingJob", request, training_pb2.PauseTrainingJobResponse, _job)


def resume_job(tenant: str, job: str) -> Call[t.Job]:
    """TrainingService.ResumeTrainingJob."""
    request = training_pb2.ResumeTrainingJobRequest(name=job_name(tenant, job))
    return Call(f"{_SERVICE}/ResumeTrainingJob", request, training_pb2.ResumeTrainingJobResponse, _job)


def publish_job(tenant: str, job: str) -> Call[t.Job]:
    """TrainingService.PublishTrainingJob."""
    request = training_pb2.PublishTrainingJobRequest(name=job_name(tenant, job))
    return Call(f"{_SERVICE}/PublishTrainingJob", request, training_pb2.PublishTrainingJobResponse, _job)


def delete_job(tenant: str, job: str) -> Call[None]:
    """TrainingService.DeleteTrainingJob."""
    request = training_pb2.DeleteTrainingJobRequest(name=job_name(tenant, job))
    return Call(
        f"{_SERVICE}/DeleteTrainingJob",
        request,
        training_pb2.DeleteTrainingJobResponse,
        _nothing,
    )


def watch_job(tenant: str, job: str) -> Call[t.JobUpdate]:
    """TrainingService.WatchTrainingJob."""
    return Call(
        f"{_SERVICE}/WatchTrainingJob",
        training_pb2.WatchTrainingJobRequest(name=job_name(tenant, job)),
        training_pb2.WatchTrainingJobResponse,
        convert_jobs.job_update,
    )


def job_log(tenant: str, job: str, lines: int, *, follow: bool) -> Call[tuple[str, ...]]:
    """TrainingService.TailTrainingLog."""
    return Call(
        f"{_SERVICE}/TailTrainingLog",
        # 0 is the wire's default.
        training_pb2.TailTrainingLogRequest(name=job_name(tenant, job), lines=lines or -1, follow=follow),
        training_pb2.TailTrainingLogResponse,
        lambda r: tuple(r.lines),
    )


def _job(response: Any) -> t.Job:
    return convert_jobs.job(response.job)
