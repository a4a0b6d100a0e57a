"""What is told of requests: log lines, traces, and series that cannot grow without bound."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncGenerator

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from optiq_daemon.errors import NotFoundError
from optiq_daemon.gateway import metrics
from optiq_daemon.logs import FORMAT, JsonFormatter, log_request
from optiq_daemon.observers import Ended, Observed
from optiq_daemon.tracing import Tracing
from optiq_protos.v1 import generation_pb2 as pb
from optiq_protos.v1 import runtime_pb2

SECRET = "the purple elephant"


def ended(**fields: object) -> Ended:
    known = {"request_id": "r1", "tenant": "default", "owner": "default", "adapter": "roman", "code": "OK"}
    known["digest"] = "d" * 64
    times = {"began": 1_700_000_000.0, "seconds": 0.4, "queue_ms": 100.0, "prefill_ms": 50.0, "decode_ms": 200.0}
    return Ended(**{**known, **times, **fields})  # type: ignore[arg-type]


async def answers(request: pb.GenerateRequest) -> AsyncGenerator[pb.GenerateResponse, None]:
    """Two tokens; an adapter called `absent` is not there."""
    if request.adapter == "absent":
        raise NotFoundError("adapter", "absent", "not there")
    adapter = f"tenants/default/adapters/{request.adapter}"
    yield pb.GenerateResponse(started=pb.Started(request_id="r2", adapter=adapter, prompt_tokens=3, cached_tokens=1))
    yield pb.GenerateResponse(chunk=pb.Chunk(text="a", token_ids=[1, 2]))
    timings = pb.Timings(queue_ms=1, prefill_ms=2, decode_ms=3, time_to_first_token_ms=4)
    yield pb.GenerateResponse(finished=pb.Finished(timings=timings))


async def observe(request: pb.GenerateRequest, *, leave: bool = False) -> Ended:
    seen: list[Ended] = []
    observed = Observed(answers)
    observed.observe(seen.append)
    responses = observed.serve(request)
    try:
        async for response in responses:
            if leave and response.HasField("chunk"):
                break
    except NotFoundError:
        pass
    await responses.aclose()
    (one,) = seen
    return one


async def test_how_requests_end() -> None:
    done = await observe(pb.GenerateRequest(prompt=SECRET, adapter="roman", parent="tenants/acme"))
    assert (done.code, done.tenant, done.adapter, done.request_id) == ("OK", "acme", "roman", "r2")
    assert (done.prompt_tokens, done.cached_tokens, done.completion_tokens) == (3, 1, 2)
    assert (done.queue_ms, done.prefill_ms, done.decode_ms, done.first_token_ms) == (1, 2, 3, 4)
    left = await observe(pb.GenerateRequest(prompt=SECRET, adapter="roman"), leave=True)
    assert (left.code, left.tenant, left.completion_tokens) == ("CANCELLED", "default", 2)
    refused = await observe(pb.GenerateRequest(prompt=SECRET, adapter="absent", request_id="mine"))
    assert (refused.code, refused.adapter, refused.request_id) == ("NOT_FOUND", "", "mine")
    assert SECRET not in repr([done, left, refused])


@pytest.mark.parametrize("as_json", [False, True])
def test_a_line_for_every_request(as_json: bool) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if as_json else logging.Formatter(FORMAT))
    logger = logging.getLogger("optiq.requests")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        log_request(ended(completion_tokens=7))
        logger.info("no fields")
        try:
            raise ValueError("inside")
        except ValueError:
            logger.exception("failed")
    finally:
        logger.removeHandler(handler)
    lines = stream.getvalue().splitlines()
    if as_json:
        first, second, third = map(json.loads, lines)
        assert first["request_id"] == "r1" and first["tenant"] == "default" and first["adapter"] == "roman"
        assert first["completion_tokens"] == 7 and first["queue_ms"] == 100 and first["event"] == "request"
        assert second["message"] == "no fields" and "ValueError: inside" in third["exception"]
    else:
        assert "request=r1 tenant=default adapter=roman code=OK" in lines[0] and "tokens=7" in lines[0]


def test_a_request_is_a_trace_with_its_phases() -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing("http://127.0.0.1:1", version="0", exporter=exporter)
    tracing.ended(ended(completion_tokens=7))
    tracing.loaded("d" * 64, 1_700_000_000.0, 0.25)
    tracing.close()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"generate", "queue", "prefill", "decode", "load adapter"}
    root = spans["generate"]
    for name in ("queue", "prefill", "decode"):
        assert spans[name].parent.span_id == root.context.span_id
    assert spans["queue"].start_time == root.start_time == 1_700_000_000 * 10**9
    assert spans["prefill"].start_time == spans["queue"].end_time == root.start_time + 100 * 10**6
    assert root.end_time - root.start_time == pytest.approx(0.4e9)
    assert root.attributes["optiq.adapter"] == "roman" and root.attributes["gen_ai.usage.output_tokens"] == 7
    assert spans["load adapter"].end_time - spans["load adapter"].start_time == pytest.approx(0.25e9)


def test_series_have_a_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_PAIRS", 3)
    counted = metrics.Metrics()
    for number in range(10):
        counted.ended(ended(adapter=f"a{number}", completion_tokens=1))
    page, media_type = counted.page(runtime_pb2.RuntimeStatus(adapter_count=10))
    assert media_type.startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(page.decode())}
    tokens = {s.labels["adapter"]: s.value for s in families["optiq_completion_tokens"].samples if "total" in s.name}
    assert tokens == {"a0": 1, "a1": 1, "a2": 1, "(other)": 7}
    assert families["optiq_adapters"].samples[0].value == 10 and families["optiq_engine_up"].samples[0].value == 0


def test_choices_end_together() -> None:
    """The first error ends all generations of a request, and comes out as itself."""
    from optiq_daemon.gateway.choices import run

    open_now = 0

    async def serve(request: pb.GenerateRequest) -> AsyncGenerator[pb.GenerateResponse, None]:
        nonlocal open_now
        open_now += 1
        try:
            yield pb.GenerateResponse(started=pb.Started())
            if request.adapter == "absent":
                raise NotFoundError("adapter", "absent", "not there")
            await asyncio.sleep(60)
        finally:
            open_now -= 1

    async def all_of(*adapters: str) -> None:
        async for _ in run(serve, [pb.GenerateRequest(adapter=adapter) for adapter in adapters]):
            pass

    with pytest.raises(NotFoundError):
        asyncio.run(all_of("a", "absent", "b"))
    assert open_now == 0
