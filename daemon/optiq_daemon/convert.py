"""The daemon's records as messages of `optiq.v1`, and page tokens."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec
from google.protobuf.timestamp_pb2 import Timestamp

from optiq_core.planner.plan import Verdict, notes_of
from optiq_core.train.config import TrainConfig
from optiq_core.train.events import Progress
from optiq_core.train.schemes import RANK_SCALINGS, RankScaling
from optiq_daemon.errors import InvalidRequestError
from optiq_daemon.events import Event
from optiq_daemon.jobs.records import JobRecord, Publication, Schedule, Wait
from optiq_daemon.live import LiveRequest
from optiq_daemon.names import AdapterKey, JobKey, parse_job
from optiq_daemon.registry import Registry
from optiq_daemon.versions import VersionRecord
from optiq_protos.v1 import adapter_pb2, event_pb2, runtime_pb2, training_pb2, training_queue_pb2

T = TypeVar("T")

MAX_PAGE = 1000
DEFAULT_PAGE = 100

_RANK_SCALINGS: dict[int, RankScaling] = {
    training_pb2.RankScaling.Value(f"RANK_SCALING_{name.upper()}"): name for name in RANK_SCALINGS
}


def timestamp(seconds: float) -> Timestamp | None:
    """Seconds since the epoch; None for 0, which leaves the field unset."""
    if not seconds:
        return None
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e9))
    return stamp


def adapter(registry: Registry, key: AdapterKey) -> adapter_pb2.Adapter:
    """A name as it is now."""
    record = registry.record(key)
    slot = registry.residency.slot(record.digest) if record.digest else None
    message = adapter_pb2.Adapter(
        name=key.name,
        digest=record.digest,
        state=adapter_pb2.AdapterState.Name(registry.state(key)),
        resident_bytes=slot.resident_bytes if slot else 0,
        active_leases=slot.leases if slot else 0,
        create_time=timestamp(record.create_time),
        update_time=timestamp(record.update_time),
        source_path=record.source_path,
        drop_to_routable_ms=record.drop_to_routable_ms,
        etag=registry.etag(key),
        pinned=record.pinned,
        keep_alive_seconds=record.keep_alive_s,
        warning="; ".join(record.warnings.values()),
        last_use_time=timestamp(slot.last_use) if slot else None,
    )
    if (version := registry.history.find(key, record.digest)) is not None:
        message.version = version.number
        message.held_back_digest = record.folder_digest if record.folder_digest != record.digest else ""
    if record.quarantine is not None:
        message.quarantine.CopyFrom(adapter_pb2.QuarantineReason(**msgspec.structs.asdict(record.quarantine)))
    if record.description is not None:
        for field, value in msgspec.structs.asdict(record.description).items():
            if field == "targets":
                message.targets.extend(value)
            else:
                setattr(message, field, value)
    return message


def adapter_version(registry: Registry, version: VersionRecord) -> adapter_pb2.AdapterVersion:
    """A kept version as it is now."""
    slot = registry.residency.slot(version.digest)
    message = adapter_pb2.AdapterVersion(
        number=version.number,
        digest=version.digest,
        current=registry.record(version.key).digest == version.digest,
        origin=version.origin,
        create_time=timestamp(version.create_time),
        publish_time=timestamp(version.publish_time),
        resident_bytes=slot.resident_bytes if slot else 0,
        active_leases=slot.leases if slot else 0,
    )
    if version.description is not None:
        for field in ("format", "kind", "min_rank", "max_rank", "parameter_count", "disk_bytes"):
            setattr(message, field, getattr(version.description, field))
    return message


def train_config(message: training_pb2.TrainingConfig) -> TrainConfig:
    """The wire's configuration with its zeros replaced by defaults.

    Raises:
        InvalidRequestError: names every field that is out of range.
    """
    values: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        name = field.name
        value = getattr(message, name)
        if name == "mask_prompt":
            values[name] = value if message.HasField("mask_prompt") else None
        elif name == "rank_scaling":
            if value and value not in _RANK_SCALINGS:
                raise InvalidRequestError.of("config.rank_scaling", f"{value} is not a rank scaling")
            if value:
                values[name] = _RANK_SCALINGS[value]
        elif name == "target_modules":
            if value:
                values[name] = tuple(value)
        elif name == "rank_pattern":
            values[name] = dict(value)
        elif value or name in ("dropout", "seed", "grad_checkpoint"):
            values[name] = value
    config = TrainConfig(**{"data_path": "", **values})
    if violations := config.violations():
        raise InvalidRequestError([(f"config.{field}", text) for field, text in violations])
    return config


def job(record: JobRecord) -> training_pb2.TrainingJob:
    """A job as it is now."""
    config = msgspec.structs.asdict(record.config)
    scaling = f"RANK_SCALING_{config.pop('rank_scaling').upper()}"
    if config["mask_prompt"] is None:
        del config["mask_prompt"]
    return training_pb2.TrainingJob(
        name=record.key.name,
        state=training_pb2.JobState.Name(record.state),
        state_reason=record.state_reason,
        adapter_id=record.adapter_id,
        config=training_pb2.TrainingConfig(rank_scaling=scaling, **config),
        progress=progress(record.progress) if record.progress else None,
        create_time=timestamp(record.create_time),
        start_time=timestamp(record.start_time),
        end_time=timestamp(record.end_time),
        adapter_digest=record.adapter_digest,
        attempts=record.attempts,
        etag=record.etag,
        plan=plan(record.plan) if record.plan else None,
        schedule=training_queue_pb2.JobSchedule(
            priority=record.schedule.priority,
            after=_job_names(record, record.schedule.after),
            not_before=timestamp(record.schedule.not_before),
        ),
        wait=_wait(record, record.wait) if record.wait else None,
        reduced=record.reduced.words(record.config),
        publication=training_queue_pb2.JobPublication(**msgspec.structs.asdict(record.publication)),
        gate_result=training_queue_pb2.JobGateResult(**msgspec.structs.asdict(record.gate)) if record.gate else None,
    )


def _wait(record: JobRecord, wait: Wait) -> training_queue_pb2.JobWait:
    return training_queue_pb2.JobWait(
        reason=f"JOB_WAIT_REASON_{wait.reason.upper()}",
        needed_bytes=wait.needed_bytes,
        free_bytes=wait.free_bytes,
        needed_resources=wait.needed_resources,
        free_resources=wait.free_resources,
        ahead=wait.ahead,
        jobs=_job_names(record, wait.jobs),
        until=timestamp(wait.until),
    )


def _job_names(record: JobRecord, jobs: Iterable[str]) -> list[str]:
    return [JobKey(record.tenant, job).name for job in jobs]


def publication(message: training_queue_pb2.JobPublication) -> Publication:
    """What becomes of a job's adapter."""
    values = {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}
    return Publication(**{**values, "route_weight": message.route_weight or Publication().route_weight})


def schedule(message: training_queue_pb2.JobSchedule, tenant: str) -> Schedule:
    """When a job of a tenant may run.

    Raises:
        InvalidRequestError: it comes after what is no job of the tenant.
    """
    after = []
    for name in message.after:
        key = parse_job(name, "schedule.after")
        if key.tenant != tenant:
            raise InvalidRequestError.of("schedule.after", f"{name} is of another tenant than {tenant!r}")
        after.append(key.job)
    not_before = message.not_before.ToNanoseconds() / 1e9 if message.HasField("not_before") else 0.0
    return Schedule(priority=message.priority, after=tuple(dict.fromkeys(after)), not_before=not_before)


def plan(verdict: Verdict) -> training_pb2.TrainingPlan:
    """A plan held against what there is."""
    step = verdict.step
    return training_pb2.TrainingPlan(
        expected_bytes=verdict.expected_bytes,
        bound_bytes=verdict.bound_bytes,
        free_bytes=verdict.ceiling.free_bytes,
        base_bytes=step.base_bytes,
        adapter_bytes=step.adapter_bytes,
        optimizer_bytes=step.optimizer_bytes,
        activation_bytes=step.activation_bytes,
        temporary_bytes=step.temporary_bytes,
        live_buffers=step.live_buffers,
        resource_limit=verdict.ceiling.resources,
        fits=verdict.fits,
        reasons=verdict.reasons,
        advice=[
            training_pb2.TrainingAdvice(text=a.text, expected_bytes=a.expected_bytes, time_ratio=a.time_ratio)
            for a in verdict.advice
        ],
        peak_at=step.where,
        calibration_factor=verdict.calibration.factor,
        calibration_margin=verdict.calibration.margin,
        calibration_runs=verdict.calibration.observations,
        notes=notes_of(verdict),
    )


def progress(report: Progress) -> training_pb2.TrainingProgress:
    """One report."""
    values = {name: value for name, value in msgspec.structs.asdict(report).items() if value is not None}
    return training_pb2.TrainingProgress(**values)


def event(entry: Event) -> event_pb2.Event:
    """One entry of the log."""
    return event_pb2.Event(
        revision=entry.revision,
        time=timestamp(entry.time),
        type=entry.type,
        resource=entry.resource,
        message=entry.message,
        fields=entry.fields,
    )


def live_request(request: LiveRequest) -> runtime_pb2.LiveRequest:
    """One request that is being served."""
    return runtime_pb2.LiveRequest(
        request_id=request.request_id,
        tenant=request.tenant,
        requested_adapter=request.adapter,
        adapter_digest=request.parts[0].digest if len(request.parts) == 1 else "",
        adapters=request.parts,
        phase=request.phase,
        completion_tokens=request.completion_tokens,
        tokens_per_second=request.tokens_per_second,
        time_to_first_token_ms=request.time_to_first_token_ms,
        start_time=timestamp(request.start_time),
        route=request.route,
        route_target=request.target,
        route_why=request.why,
        queue_position=request.position,
    )


def page_size(asked: int) -> int:
    """How many to return.

    Raises:
        InvalidRequestError: outside 0 to 1000.
    """
    if not 0 <= asked <= MAX_PAGE:
        raise InvalidRequestError.of("page_size", f"must be 0 (for {DEFAULT_PAGE}) to {MAX_PAGE}, is {asked}")
    return asked or DEFAULT_PAGE


def page_token(scope: str, cursor: list[Any]) -> str:
    """An opaque token that continues a list after `cursor`; only a list of the same scope takes it."""
    return base64.urlsafe_b64encode(msgspec.json.encode([scope, *cursor])).decode().rstrip("=")


def page_cursor(scope: str, token: str, shape: type[T]) -> T | None:
    """The cursor in a token, None for an empty token.

    Raises:
        InvalidRequestError: not a token of a list of this scope.
    """
    if not token:
        return None
    try:
        found = msgspec.json.decode(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        if isinstance(found, list) and found[:1] == [scope]:
            return msgspec.convert(found[1:], shape)
    except (binascii.Error, ValueError, msgspec.MsgspecError):
        pass
    raise InvalidRequestError.of("page_token", "is not a token that this list returned; begin without one")
