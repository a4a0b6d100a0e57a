"""Bad input on every RPC: a status with details, no stack trace, no hang. And what every caller may rely on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from optiq_protos.v1 import adapter_pb2, event_pb2, generation_pb2, runtime_pb2, training_pb2
from tests.integration.conftest import Daemon

pytestmark = pytest.mark.usefixtures("client")

ABSENT = "tenants/default/adapters/absent"
Sampling = generation_pb2.SamplingParams
Weight = generation_pb2.AdapterWeight


def generate(**fields: Any) -> generation_pb2.GenerateRequest:
    return generation_pb2.GenerateRequest(**{"prompt": "hello", **fields})


def create(**fields: Any) -> training_pb2.CreateTrainingJobRequest:
    config = training_pb2.TrainingConfig(**{"data_path": "/nonexistent", **fields.pop("config", {})})
    return training_pb2.CreateTrainingJobRequest(**{"adapter_id": "new", "config": config, **fields})


# Method, request, the field that the status must name.
WRONG_FIELDS: list[tuple[str, Any, str]] = [
    ("Generation/Generate", generation_pb2.GenerateRequest(), "input"),
    ("Generation/Generate", generate(prompt=""), "prompt"),
    ("Generation/Generate", generate(parent="tenants/../x"), "parent"),
    ("Generation/Generate", generate(adapter="../escape"), "adapter"),
    ("Generation/Generate", generate(adapter="x@short"), "adapter"),
    ("Generation/Generate", generate(adapter_scale=float("nan")), "adapter_scale"),
    ("Generation/Generate", generate(adapter="a", adapters=[Weight(name="b")]), "adapters"),
    ("Generation/Generate", generate(adapters=[Weight(name="b"), Weight(name="B")]), "adapters[1].name"),
    ("Generation/Generate", generate(adapters=[Weight(name="b"), Weight(name="b")]), "adapters[1].name"),
    ("Generation/Generate", generate(adapters=[Weight(name="b", weight=float("inf"))]), "adapters[0].weight"),
    ("Generation/Generate", generate(adapters=[Weight(name=f"a{i}") for i in range(17)]), "adapters"),
    ("Generation/Generate", generate(sampling=Sampling(temperature=-1)), "sampling.temperature"),
    ("Generation/Generate", generate(sampling=Sampling(temperature=float("inf"))), "sampling.temperature"),
    ("Generation/Generate", generate(sampling=Sampling(top_p=0)), "sampling.top_p"),
    ("Generation/Generate", generate(sampling=Sampling(top_p=float("nan"))), "sampling.top_p"),
    ("Generation/Generate", generate(sampling=Sampling(top_k=-1)), "sampling.top_k"),
    ("Generation/Generate", generate(sampling=Sampling(min_p=1.5)), "sampling.min_p"),
    ("Generation/Generate", generate(max_tokens=-1), "max_tokens"),
    ("Generation/Generate", generate(stop=["x"] * 17), "stop"),
    ("Generation/Generate", generate(stop=["ok", ""]), "stop[1]"),
    ("Generation/Generate", generate(request_id="x" * 1000), "request_id"),
    ("Generation/Generate", generate(messages=generation_pb2.ChatMessages()), "messages.messages"),
    (
        "Generation/Generate",
        generate(messages=generation_pb2.ChatMessages(messages=[generation_pb2.ChatMessage(role="boss", content="x")])),
        "messages.messages[0].role",
    ),
    ("Generation/Generate", generate(token_ids=generation_pb2.TokenIds()), "token_ids.ids"),
    ("Generation/Generate", generate(token_ids=generation_pb2.TokenIds(ids=[4_000_000_000])), "token_ids"),
    ("Generation/Generate", generate(prompt="word " * 20_000), "prompt"),
    ("Adapter/ListAdapters", adapter_pb2.ListAdaptersRequest(parent="default"), "parent"),
    ("Adapter/ListAdapters", adapter_pb2.ListAdaptersRequest(page_size=-1), "page_size"),
    ("Adapter/ListAdapters", adapter_pb2.ListAdaptersRequest(page_size=1001), "page_size"),
    ("Adapter/ListAdapters", adapter_pb2.ListAdaptersRequest(page_token="%%%"), "page_token"),
    ("Adapter/ListAdapters", adapter_pb2.ListAdaptersRequest(page_token="W10"), "page_token"),
    ("Adapter/GetAdapter", adapter_pb2.GetAdapterRequest(), "name"),
    ("Adapter/GetAdapter", adapter_pb2.GetAdapterRequest(name="tenants/default/adapters/a/b"), "name"),
    ("Adapter/ImportAdapter", adapter_pb2.ImportAdapterRequest(adapter_id="UPPER", source_path="/tmp"), "adapter_id"),
    ("Adapter/ImportAdapter", adapter_pb2.ImportAdapterRequest(adapter_id="a", source_path="tmp"), "source_path"),
    (
        "Adapter/ImportAdapter",
        adapter_pb2.ImportAdapterRequest(adapter_id="a", source_path="/no\0where"),
        "source_path",
    ),
    (
        "Adapter/ImportAdapter",
        adapter_pb2.ImportAdapterRequest(adapter_id="a", source_path="/etc/hostname"),
        "source_path",
    ),
    ("Adapter/DeleteAdapter", adapter_pb2.DeleteAdapterRequest(name="x"), "name"),
    ("Adapter/LoadAdapter", adapter_pb2.LoadAdapterRequest(), "name"),
    ("Adapter/UnloadAdapter", adapter_pb2.UnloadAdapterRequest(name="//"), "name"),
    ("Adapter/WatchAdapters", adapter_pb2.WatchAdaptersRequest(parent="x"), "parent"),
    ("Training/CreateTrainingJob", training_pb2.CreateTrainingJobRequest(), "adapter_id"),
    ("Training/CreateTrainingJob", create(), "config.data_path"),
    ("Training/CreateTrainingJob", create(config={"data_path": ""}), "config.data_path"),
    ("Training/CreateTrainingJob", create(config={"data_path": "relative"}), "config.data_path"),
    ("Training/CreateTrainingJob", create(config={"rank": -8}), "config.rank"),
    ("Training/CreateTrainingJob", create(config={"rank_scaling": 99}), "config.rank_scaling"),
    ("Training/CreateTrainingJob", create(config={"dropout": 2.0}), "config.dropout"),
    ("Training/CreateTrainingJob", create(config={"learning_rate": float("nan")}), "config.learning_rate"),
    ("Training/CreateTrainingJob", create(config={"scale": float("inf")}), "config.scale"),
    ("Training/CreateTrainingJob", create(request_id="x" * 200), "request_id"),
    ("Training/GetTrainingJob", training_pb2.GetTrainingJobRequest(name="jobs/1"), "name"),
    ("Training/ListTrainingJobs", training_pb2.ListTrainingJobsRequest(page_token="x"), "page_token"),
    ("Training/ListTrainingJobs", training_pb2.ListTrainingJobsRequest(page_size=5000), "page_size"),
    ("Training/WatchTrainingJob", training_pb2.WatchTrainingJobRequest(), "name"),
    ("Runtime/WatchTelemetry", runtime_pb2.WatchTelemetryRequest(interval_ms=1), "interval_ms"),
    ("Runtime/WatchTelemetry", runtime_pb2.WatchTelemetryRequest(interval_ms=-5), "interval_ms"),
    ("Event/WatchEvents", event_pb2.WatchEventsRequest(from_revision=-1), "from_revision"),
]

# Method, request, the status.
REFUSED: list[tuple[str, Any, str]] = [
    ("Generation/Generate", generate(parent="tenants/nobody"), "NOT_FOUND"),
    ("Generation/Generate", generate(adapter="absent"), "NOT_FOUND"),
    ("Generation/Generate", generate(prompt="x" * 9_000_000), "RESOURCE_EXHAUSTED"),
    ("Adapter/ListAdapters", adapter_pb2.ListAdaptersRequest(parent="tenants/nobody"), "NOT_FOUND"),
    ("Adapter/GetAdapter", adapter_pb2.GetAdapterRequest(name=ABSENT), "NOT_FOUND"),
    (
        "Adapter/ImportAdapter",
        adapter_pb2.ImportAdapterRequest(adapter_id="a", source_path="/etc"),
        "FAILED_PRECONDITION",
    ),
    ("Adapter/DeleteAdapter", adapter_pb2.DeleteAdapterRequest(name=ABSENT), "NOT_FOUND"),
    ("Adapter/LoadAdapter", adapter_pb2.LoadAdapterRequest(name=ABSENT), "NOT_FOUND"),
    ("Adapter/UnloadAdapter", adapter_pb2.UnloadAdapterRequest(name=ABSENT), "NOT_FOUND"),
    ("Training/GetTrainingJob", training_pb2.GetTrainingJobRequest(name="tenants/default/jobs/no"), "NOT_FOUND"),
    ("Training/CancelTrainingJob", training_pb2.CancelTrainingJobRequest(name="tenants/default/jobs/no"), "NOT_FOUND"),
    ("Training/DeleteTrainingJob", training_pb2.DeleteTrainingJobRequest(name="tenants/default/jobs/no"), "NOT_FOUND"),
    ("Training/WatchTrainingJob", training_pb2.WatchTrainingJobRequest(name="tenants/default/jobs/no"), "NOT_FOUND"),
    ("Event/WatchEvents", event_pb2.WatchEventsRequest(from_revision=2**62), "OUT_OF_RANGE"),
]

METHODS = sorted({method for method, _, _ in WRONG_FIELDS + REFUSED} | {"Runtime/GetStatus"})


@pytest.fixture
def channel(daemon: Daemon) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"unix:{daemon.home}/run/daemon.sock") as opened:
        yield opened


def call(channel: grpc.Channel, method: str, content: bytes) -> grpc.RpcError:
    """Send bytes, as any program may, and return the status that comes back."""
    service, name = method.split("/")
    # Both kinds of response are read as a stream: one message at most comes back here.
    stream = channel.unary_stream(f"/optiq.v1.{service}Service/{name}")
    with pytest.raises(grpc.RpcError) as caught:
        for _ in stream(content, timeout=30):
            pass
    return caught.value


@pytest.mark.parametrize(("method", "request_", "field"), WRONG_FIELDS)
def test_a_wrong_field_is_named(channel: grpc.Channel, method: str, request_: Any, field: str) -> None:
    error = call(channel, method, request_.SerializeToString())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error.details()
    info, bad = details(error)
    assert info.domain == "optiq" and info.reason == "INVALID_ARGUMENT"
    assert field in [violation.field for violation in bad.field_violations]
    assert all(violation.description for violation in bad.field_violations)


@pytest.mark.parametrize(("method", "request_", "code"), REFUSED)
def test_a_refusal_has_a_reason(channel: grpc.Channel, method: str, request_: Any, code: str) -> None:
    error = call(channel, method, request_.SerializeToString())
    assert error.code().name == code, error.details()
    assert "Traceback" not in error.details()
    if code != "RESOURCE_EXHAUSTED":  # that one gRPC refuses itself, by its size
        info, _ = details(error)
        assert info.domain == "optiq" and info.reason


@pytest.mark.parametrize("method", METHODS)
def test_bytes_that_are_no_message_get_a_status_with_details(channel: grpc.Channel, method: str) -> None:
    error = call(channel, method, b"\xff\xff\xff\xff not a message")
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    info, bad = details(error)
    assert info.domain == "optiq" and bad.field_violations[0].field == "request"


def test_unknown_methods_and_services(channel: grpc.Channel) -> None:
    assert call(channel, "Generation/Nothing", b"").code() is grpc.StatusCode.UNIMPLEMENTED
    assert call(channel, "Nothing/Nothing", b"").code() is grpc.StatusCode.UNIMPLEMENTED


def test_health_and_reflection(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "optiq.v1.GenerationService", "optiq.v1.AdapterService", "optiq.v1.TrainingService"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="nothing"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    answer = next(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask])))
    names = {service.name for service in answer.list_services_response.service}
    assert {"optiq.v1.GenerationService", "optiq.v1.EventService", "grpc.health.v1.Health"} <= names


def details(error: grpc.RpcError) -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.BadRequest]:
    packed = dict(error.trailing_metadata())["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(packed)
    assert status.code == error.code().value[0]
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        _ = detail.Unpack(info) or detail.Unpack(bad)
    return info, bad
