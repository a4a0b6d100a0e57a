"""The client's surface: public names, the two twins, and that calls and types cover the protos."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from google.protobuf import descriptor

import optiq_client
from optiq_client import (
    AdapterState,
    AsyncClient,
    Client,
    Finished,
    JobPublication,
    JobSchedule,
    RankScaling,
    Started,
    TrainingConfig,
    aio_resources,
    calls,
    calls_training,
    channel,
    convert,
    convert_jobs,
    resources,
    training,
)
from optiq_protos.v1 import (
    adapter_pb2,
    event_pb2,
    generation_pb2,
    runtime_pb2,
    training_pb2,
    training_queue_pb2,
)

PUBLIC = """
Adapter AdapterChange AdapterModule AdapterState AdapterVersion AlreadyExists AsyncClient AsyncGeneration AsyncStream
Base BatchStats Cancelled ChangeType Chunk Client ConnectionFailed CredentialsError DeadlineExceeded Device Engine
EngineState Event FailedPrecondition FinishReason Finished Generation GenerationEvent HealthStatus InvalidRequest Job
JobGateResult JobPublication JobSchedule JobState JobUpdate JobWait LiveRequest Message NotFound
OptiqClientError PermissionDenied Progress QuarantineReason Queued
RankScaling ResourceExhausted Route RouteCount RouteDecision RouteTrial ServedAdapter ServerError ShadowAnswer Started
Status Stream Tenant TenantLoad TenantQuotas TenantRole TenantToken TenantUsage Timings Tls TokenLogprob
Tool ToolCall TrainingAdvice TrainingConfig TrainingPlan Unavailable Usage Violation WaitReason
"""


def public_methods(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def test_public_names_are_pinned() -> None:
    assert sorted(optiq_client.__all__) == sorted(PUBLIC.split())
    for name in optiq_client.__all__:
        assert getattr(optiq_client, name) is not None
    with pytest.raises(AttributeError, match="Nonsense"):
        optiq_client.Nonsense  # noqa: B018


def test_async_twin_has_the_same_surface() -> None:
    for sync, twin in (
        (Client, AsyncClient),
        (optiq_client.Generation, optiq_client.AsyncGeneration),
        (optiq_client.Stream, optiq_client.AsyncStream),
        (resources.Adapters, aio_resources.AsyncAdapters),
        (training.Training, training.AsyncTraining),
        (resources.Runtime, aio_resources.AsyncRuntime),
        (resources.Events, aio_resources.AsyncEvents),
    ):
        assert public_methods(sync) == public_methods(twin)


def test_every_rpc_has_a_call_with_the_right_messages() -> None:
    config = TrainingConfig()
    sampling = dict.fromkeys(("adapters", "adapter_scale", "temperature", "top_p", "top_k", "min_p", "seed"))
    made = [
        calls.generate("t", "x", adapter="", raw=False, max_tokens=0, stop=(), request_id="", **sampling),  # type: ignore[arg-type]
        calls.list_adapters("t", ""),
        calls.get_adapter("t", "a"),
        calls.import_adapter("t", "a", "/x"),
        calls.delete_adapter("t", "a", ""),
        calls.load_adapter("t", "a"),
        calls.unload_adapter("t", "a"),
        calls.watch_adapters("t"),
        calls.set_keep_alive("t", "a", 1.0, ""),
        calls.upload_adapter("t", "a", Path(__file__).parents[2] / "optiq_core/experiments/ready/pirate"),
        calls.export_adapter("t", "a", "", "peft"),
        calls.merge_adapters("t", "a", {"b": 0.5, "c": 0.5}),
        calls.pin_adapter("t", "a"),
        calls.unpin_adapter("t", "a"),
        calls.list_versions("t", "a", ""),
        calls.list_modules("t", "a", ""),
        calls.rollback_adapter("t", "a", "-1", ""),
        calls_training.create_job(
            "t", "a", config, schedule=JobSchedule(after=("b",)), publication=JobPublication(), request_id=""
        ),
        calls_training.publish_job("t", "j"),
        calls_training.plan_job("t", config),
        calls_training.get_job("t", "j"),
        calls_training.list_jobs("t", ""),
        calls_training.update_job("t", "j", priority=1, after=("b",), not_before=None, etag=""),
        calls_training.pause_job("t", "j"),
        calls_training.resume_job("t", "j"),
        calls_training.cancel_job("t", "j"),
        calls_training.delete_job("t", "j"),
        calls_training.watch_job("t", "j"),
        calls_training.job_log("t", "j", 5, follow=True),
        calls.get_status(),
        calls.watch_telemetry(1000),
        calls.watch_events(1),
    ]
    wire: dict[str, descriptor.MethodDescriptor] = {}
    for module in (adapter_pb2, event_pb2, generation_pb2, runtime_pb2, training_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            wire |= {f"/{service.full_name}/{m.name}": m for m in service.methods}
    assert {c.path for c in made} == set(wire)
    for call in made:
        assert call.request.DESCRIPTOR.full_name == wire[call.path].input_type.full_name
        assert call.response.DESCRIPTOR.full_name == wire[call.path].output_type.full_name
    for service_name, method in channel.RETRIED:
        assert f"/{service_name}/{method}" in wire


def test_every_wire_field_arrives() -> None:
    """A field that the protos gain and the types do not is noticed here."""
    pairs = (
        (adapter_pb2.Adapter, optiq_client.Adapter),
        (adapter_pb2.AdapterModule, optiq_client.AdapterModule),
        (adapter_pb2.AdapterVersion, optiq_client.AdapterVersion),
        (adapter_pb2.QuarantineReason, optiq_client.QuarantineReason),
        (training_pb2.TrainingJob, optiq_client.Job),
        (training_pb2.TrainingConfig, TrainingConfig),
        (training_pb2.TrainingPlan, optiq_client.TrainingPlan),
        (training_pb2.TrainingAdvice, optiq_client.TrainingAdvice),
        (training_pb2.TrainingProgress, optiq_client.Progress),
        (training_queue_pb2.JobSchedule, JobSchedule),
        (training_queue_pb2.JobPublication, JobPublication),
        (training_queue_pb2.JobGateResult, optiq_client.JobGateResult),
        (training_queue_pb2.JobWait, optiq_client.JobWait),
        (runtime_pb2.RuntimeStatus, optiq_client.Status),
        (runtime_pb2.EngineStatus, optiq_client.Engine),
        (runtime_pb2.BaseStatus, optiq_client.Base),
        (runtime_pb2.DeviceStatus, optiq_client.Device),
        (runtime_pb2.LiveRequest, optiq_client.LiveRequest),
        (event_pb2.Event, optiq_client.Event),
        (generation_pb2.Started, Started),
        (generation_pb2.Finished, Finished),
        (generation_pb2.Timings, optiq_client.Timings),
        (generation_pb2.Usage, optiq_client.Usage),
        (generation_pb2.BatchStats, optiq_client.BatchStats),
    )
    for proto, kind in pairs:
        assert [f.name for f in proto.DESCRIPTOR.fields] == [f.name for f in dataclasses.fields(kind)]


def test_training_config_survives_the_round_trip() -> None:
    config = TrainingConfig(
        data_path="/d",
        rank=16,
        rank_scaling=RankScaling.BY_BITS,
        scale=10.0,
        dropout=0.25,
        target_modules=("q_proj",),
        num_layers=-1,
        iters=7,
        batch_size=2,
        learning_rate=0.5,
        max_seq_length=128,
        mask_prompt=False,
        seed=9,
        steps_per_report=1,
        steps_per_eval=2,
        steps_per_checkpoint=3,
        grad_checkpoint=True,
        rank_pattern={"q_proj": 4},
        budget_like="constant:16",
    )
    assert convert_jobs.training_config(convert_jobs.training_config_message(config)) == config
    assert convert_jobs.training_config(training_pb2.TrainingConfig()) == TrainingConfig()


def test_unknown_enum_value_becomes_unspecified() -> None:
    assert convert.adapter(adapter_pb2.Adapter(state=99)).state is AdapterState.UNSPECIFIED  # type: ignore[arg-type]
