"""Messages of the training service as the client's types."""

from __future__ import annotations

from typing import Any

from optiq_client import states
from optiq_client import types as t
from optiq_client.convert import _enum, _optional_time
from optiq_client.jobs import JobGateResult, JobPublication, JobSchedule, JobWait
from optiq_protos.v1 import training_pb2, training_queue_pb2


def training_config(message: training_pb2.TrainingConfig) -> t.TrainingConfig:
    """A job's settings."""
    values = {name: getattr(message, name) for name in t.TrainingConfig.__slots__}
    values |= {
        "rank_scaling": _enum(states.RankScaling, training_pb2.RankScaling, message.rank_scaling, "RANK_SCALING_"),
        "target_modules": tuple(message.target_modules),
        "mask_prompt": message.mask_prompt if message.HasField("mask_prompt") else None,
        "rank_pattern": dict(message.rank_pattern),
    }
    return t.TrainingConfig(**values)


def training_config_message(config: t.TrainingConfig) -> training_pb2.TrainingConfig:
    """The wire form of a job's settings."""
    values: dict[str, Any] = {name: getattr(config, name) for name in t.TrainingConfig.__slots__}
    values["rank_scaling"] = f"RANK_SCALING_{config.rank_scaling.name}"
    return training_pb2.TrainingConfig(**values)


def progress(message: training_pb2.TrainingProgress) -> t.Progress:
    """One report of a running job."""
    return t.Progress(
        step=message.step,
        total_steps=message.total_steps,
        train_loss=message.train_loss,
        valid_loss=message.valid_loss if message.HasField("valid_loss") else None,
        tokens_per_second=message.tokens_per_second,
        trained_tokens=message.trained_tokens,
        seconds_left=message.seconds_left,
        peak_memory_bytes=message.peak_memory_bytes,
        learning_rate=message.learning_rate,
    )


def job(message: training_pb2.TrainingJob) -> t.Job:
    """A training job."""
    return t.Job(
        name=message.name,
        state=_enum(states.JobState, training_pb2.JobState, message.state, "JOB_STATE_"),
        state_reason=message.state_reason,
        adapter_id=message.adapter_id,
        config=training_config(message.config),
        progress=progress(message.progress) if message.HasField("progress") else None,
        create_time=_optional_time(message, "create_time"),
        start_time=_optional_time(message, "start_time"),
        end_time=_optional_time(message, "end_time"),
        adapter_digest=message.adapter_digest,
        attempts=message.attempts,
        etag=message.etag,
        plan=training_plan(message.plan) if message.HasField("plan") else None,
        schedule=job_schedule(message.schedule),
        wait=job_wait(message.wait) if message.HasField("wait") else None,
        reduced=message.reduced,
        publication=JobPublication(**_plain(message.publication)),
        gate_result=JobGateResult(**_plain(message.gate_result)) if message.HasField("gate_result") else None,
    )


def _plain(message: Any) -> dict[str, Any]:
    return {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}


def job_schedule(message: training_queue_pb2.JobSchedule) -> JobSchedule:
    """When a job may run."""
    return JobSchedule(message.priority, tuple(message.after), _optional_time(message, "not_before"))


def job_wait(message: training_queue_pb2.JobWait) -> JobWait:
    """What a job waits for."""
    return JobWait(
        reason=_enum(states.WaitReason, training_queue_pb2.JobWaitReason, message.reason, "JOB_WAIT_REASON_"),
        needed_bytes=message.needed_bytes,
        free_bytes=message.free_bytes,
        needed_resources=message.needed_resources,
        free_resources=message.free_resources,
        ahead=message.ahead,
        jobs=tuple(message.jobs),
        until=_optional_time(message, "until"),
    )


def training_plan(message: training_pb2.TrainingPlan) -> t.TrainingPlan:
    """What a run is predicted to take."""
    plain = {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}
    plain["reasons"], plain["notes"] = tuple(message.reasons), tuple(message.notes)
    plain["advice"] = tuple(t.TrainingAdvice(a.text, a.expected_bytes, a.time_ratio) for a in message.advice)
    return t.TrainingPlan(**plain)


def job_update(response: training_pb2.WatchTrainingJobResponse) -> t.JobUpdate:
    """One message of a job watch."""
    reported = progress(response.progress) if response.HasField("progress") else None
    return t.JobUpdate(job(response.job), reported)
