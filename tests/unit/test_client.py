"""The client against a server in this process: conversion, paging, streams, retries, errors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from optiq_client import (
    AdapterState,
    AsyncClient,
    ChangeType,
    Chunk,
    Client,
    ConnectionFailed,
    DeadlineExceeded,
    FailedPrecondition,
    Finished,
    FinishReason,
    HealthStatus,
    InvalidRequest,
    JobState,
    Message,
    NotFound,
    OptiqClientError,
    Queued,
    Started,
    TrainingConfig,
    Unavailable,
)
from optiq_protos.v1 import (
    runtime_pb2,
)
from tests.tui import scene
from tests.tui.fake_daemon import FakeDaemonThread


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeDaemonThread]:
    with FakeDaemonThread(f"unix:{tmp_path}/s") as thread:
        thread.do(lambda: scene.fill(thread.daemon))
        yield thread


@pytest.fixture
def client(server: FakeDaemonThread) -> Iterator[Client]:
    with Client(server.address) as made:
        yield made


def test_lists_follow_pages_and_convert(client: Client) -> None:
    found = client.adapters.list()
    assert [a.id for a in found] == ["haiku", "legal-summaries", "roman", "sql-notes", "units"]
    haiku, legal, *_ = found
    assert haiku.state is AdapterState.QUARANTINED
    assert haiku.quarantine is not None
    assert haiku.quarantine.expected == "[576, 8]"
    assert (legal.tenant, legal.kind, legal.min_rank, legal.max_rank) == ("default", "dora", 16, 32)
    assert legal.create_time is not None
    assert legal.create_time.tzinfo is not None
    jobs = client.training.list()
    assert {j.state for j in jobs} >= {JobState.RUNNING, JobState.SUCCEEDED, JobState.FAILED}
    running = client.training.get("units-0004")
    assert running.progress is not None
    assert running.progress.step == 38
    assert running.end_time is None


def test_generate_yields_text_and_keeps_the_rest(client: Client) -> None:
    generation = client.generate("What is 12?", adapter="roman", temperature=0.5, stop="!", max_tokens=5)
    assert list(generation) == ["X", "I", "I"]
    assert generation.text == "XII"
    assert generation.token_ids == [0, 1, 2]
    assert generation.started is not None
    assert generation.started.adapter == "tenants/default/adapters/roman"
    assert generation.started.adapter_digest == scene.digest("roman")
    assert (generation.started.prompt_tokens, generation.started.cached_tokens) == (12, 4)
    assert generation.finished is not None
    assert generation.finished.reason is FinishReason.STOP
    assert generation.finished.batch.max_adapters == 3


def test_generate_inputs(client: Client, server: FakeDaemonThread) -> None:
    client.generate("a", raw=True).read()
    client.generate([1, 2, 3]).read()
    client.generate([Message("system", "s"), {"role": "user", "content": "u"}]).read()
    client.generate("b", adapter="tenants/default/adapters/roman").read()
    raw, ids, chat, named = server.daemon.calls
    assert raw.raw_text == "a"
    assert list(ids.token_ids.ids) == [1, 2, 3]
    assert [m.role for m in chat.messages.messages] == ["system", "user"]
    assert (named.parent, named.adapter, named.prompt) == ("tenants/default", "roman", "b")
    assert not raw.sampling.HasField("temperature")
    with pytest.raises(TypeError, match="'role' and 'content'"):
        client.generate([{"role": "user"}])


def test_events_are_typed_and_in_order(client: Client) -> None:
    kinds = [type(e) for e in client.generate("x").events()]
    assert kinds == [Queued, Started, Chunk, Chunk, Chunk, Finished]


def test_cancel_ends_the_iteration_and_frees_the_server(client: Client, server: FakeDaemonThread) -> None:
    server.daemon.reply, server.daemon.piece_delay = ["x"] * 10_000, 0.01
    with client.generate("x") as generation:
        pieces = iter(generation)
        next(pieces)
        threading.Timer(0.05, generation.cancel).start()
        rest = list(pieces)
    assert len(rest) < 1000
    assert generation.finished is None
    for _ in range(100):
        if server.daemon.cancelled_generations:
            break
        threading.Event().wait(0.05)
    assert server.daemon.cancelled_generations == 1


def test_watches(client: Client, server: FakeDaemonThread) -> None:
    with client.adapters.watch() as changes:
        listed = [next(changes) for _ in range(6)]
        assert [c.type for c in listed] == [ChangeType.LISTED] * 5 + [ChangeType.LIST_END]
        server.do(lambda: server.daemon.drop_adapter("tenants/default/adapters/haiku"))
        assert next(changes).type is ChangeType.DELETED
    with client.events.watch(from_revision=8) as events:
        assert [next(events).revision, next(events).revision] == [8, 9]
    with client.runtime.watch(interval=0.5) as telemetry:
        status = next(telemetry)
        assert status.engine.active_rows == 5
        assert status.requests[2].requested_adapter == ""
    updates = list(client.training.watch("roman-0002"))
    assert updates[-1].job.state is JobState.SUCCEEDED


def test_actions(client: Client, server: FakeDaemonThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert client.adapters.import_folder("made", "fresh").source_path == str(tmp_path / "made")
    assert client.adapters.unload("roman").state is AdapterState.AVAILABLE
    assert client.adapters.load("roman").state is AdapterState.RESIDENT
    client.adapters.delete("roman", etag="e")
    assert server.daemon.calls[-1].etag == "e"
    job = client.training.create("tone", TrainingConfig(data_path="data"))
    assert server.daemon.calls[-1].request_id
    assert job.config.data_path == str(tmp_path / "data")
    assert client.training.cancel(job.id).state is JobState.CANCELLED
    client.training.delete(job.name)


def test_errors_carry_details(client: Client) -> None:
    with pytest.raises(NotFound, match="no adapter") as missing:
        client.adapters.get("nobody")
    assert (missing.value.reason, missing.value.domain) == ("ADAPTER_NOT_FOUND", "optiq")
    assert missing.value.metadata == {"fake": "yes"}
    with pytest.raises(InvalidRequest) as wrong:
        client.adapters.import_folder("/x", "Bad Name")
    assert wrong.value.violations[0].field == "adapter_id"
    assert "adapter_id: must match" in str(wrong.value)
    with pytest.raises(NotFound):
        list(client.generate("x", adapter="nobody"))


def test_unavailable_is_retried_then_raised_with_its_delay(client: Client, server: FakeDaemonThread) -> None:
    server.daemon.fail_next_get_status = 2
    assert client.runtime.status().version == "0.1.0"
    server.daemon.fail_next_get_status = 3
    with pytest.raises(Unavailable) as gone:
        client.runtime.status()
    assert not isinstance(gone.value, ConnectionFailed)
    assert gone.value.retry_after == 1.5
    assert gone.value.retryable


def test_nothing_at_the_address(tmp_path: Path) -> None:
    with Client(f"unix:{tmp_path}/none") as client, pytest.raises(ConnectionFailed, match="optiq serve"):
        client.runtime.status()
    with Client(f"unix:{tmp_path}/none") as client, pytest.raises(DeadlineExceeded, match="optiq serve"):
        client.wait_ready(timeout=0.3)


def test_wait_ready(client: Client, server: FakeDaemonThread) -> None:
    assert client.wait_ready(5).base.layer_count == 30
    assert client.health() is HealthStatus.SERVING
    with pytest.raises(NotFound):
        client.health("no.such.Service")

    async def starting() -> None:
        await server.daemon.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)

    asyncio.run_coroutine_threadsafe(starting(), server._loop).result(5)
    with pytest.raises(DeadlineExceeded, match="health NOT_SERVING, engine SERVING"):
        client.wait_ready(0.2)
    server.daemon.status.engine.state = runtime_pb2.ENGINE_STATE_FAILED
    server.daemon.status.engine.message = "config.json: no such file"
    with pytest.raises(FailedPrecondition, match=r"config\.json"):
        client.wait_ready(5)


async def test_async_client(server: FakeDaemonThread) -> None:
    async with AsyncClient(server.address) as client:
        assert (await client.wait_ready(5)).pid == 4242
        assert len(await client.adapters.list()) == 5
        generation = client.generate("x", adapter="units")
        assert [piece async for piece in generation] == ["X", "I", "I"]
        assert generation.finished is not None
        with pytest.raises(NotFound, match="no adapter"):
            await client.generate("x", adapter="nobody").read()
        assert [u.job.state async for u in client.training.watch("roman-0002")] == [JobState.SUCCEEDED]
        async with client.events.watch(from_revision=9) as events:
            assert (await anext(events)).type == "adapter.quarantined"
        changes = client.adapters.watch()
        await anext(changes)
        changes.cancel()
        assert [c async for c in changes] == []
    async with AsyncClient(server.address + "none") as gone:
        with pytest.raises(ConnectionFailed):
            await gone.runtime.status()


async def test_a_cancelled_task_stays_cancelled(server: FakeDaemonThread) -> None:
    server.daemon.reply, server.daemon.piece_delay = ["x"] * 1000, 0.05
    async with AsyncClient(server.address) as client:
        task = asyncio.create_task(client.generate("x").read())
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_every_kind_of_call_carries_the_token(tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []

    class Listener(grpc.ServerInterceptor):
        def intercept_service(self, continuation: Any, details: Any) -> Any:
            seen.append((details.method.rpartition("/")[2], dict(details.invocation_metadata).get("authorization", "")))
            return continuation(details)

    server = grpc.server(ThreadPoolExecutor(2), interceptors=[Listener()])
    server.add_insecure_port(f"unix:{tmp_path}/s")
    server.start()
    pirate = Path(__file__).parents[2] / "optiq_core/experiments/ready/pirate"
    try:
        with Client(f"unix:{tmp_path}/s", token="secret") as client:
            for asked in (
                client.adapters.list,
                lambda: client.adapters.upload(pirate, "a"),
                lambda: client.generate("x").read(),
            ):
                with pytest.raises(OptiqClientError):
                    asked()

        async def ask() -> None:
            async with AsyncClient(f"unix:{tmp_path}/s", token="secret") as client:
                with pytest.raises(OptiqClientError):
                    await client.adapters.upload(pirate, "a")

        asyncio.run(ask())
    finally:
        server.stop(0)
    assert seen == [
        (method, "Bearer secret") for method in ("ListAdapters", "UploadAdapter", "Generate", "UploadAdapter")
    ]
