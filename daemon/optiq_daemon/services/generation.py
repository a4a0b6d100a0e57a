"""`optiq.v1.GenerationService`: validation, admission, a lease, and the engine's stream passed on."""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from optiq_daemon.engine_client import EngineClient
from optiq_daemon.errors import InvalidRequestError, RefusedError, RequestError
from optiq_daemon.live import LiveRequest, LiveTable
from optiq_daemon.names import parse_adapter_ref, parse_parent
from optiq_daemon.registry import Registry, Resolved
from optiq_protos.internal.v1 import engine_pb2
from optiq_protos.v1 import generation_pb2, generation_pb2_grpc

log = logging.getLogger(__name__)

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 1024
MAX_REQUEST_ID = 128
MAX_SCALE = 1000.0
ROLES = ("system", "user", "assistant", "tool")
NOT_LOADED = "ADAPTER_NOT_LOADED"


class GenerationService(generation_pb2_grpc.GenerationServiceServicer):
    """Serves requests with the engine.

    Args:
        engine: gives the serving engine's client, or raises UnavailableError.
        default_max_tokens: for requests that do not say.
    """

    def __init__(
        self, registry: Registry, live: LiveTable, engine: Callable[[], EngineClient], default_max_tokens: int
    ) -> None:
        self._registry = registry
        self._live = live
        self._engine = engine
        self._default_max_tokens = default_max_tokens

    async def Generate(
        self, request: generation_pb2.GenerateRequest, _: Any
    ) -> AsyncGenerator[generation_pb2.GenerateResponse, None]:
        """Stream one completion."""
        tenant, adapter, digest = check_request(request)
        request_id = request.request_id or secrets.token_hex(8)
        live = LiveRequest(request_id, tenant, request.adapter)
        resolved = self._registry.acquire(tenant, adapter, digest)
        try:
            with self._live.admit(live):
                live.digest = resolved.digest
                async with aclosing(self._serve(request, resolved, live)) as responses:
                    async for response in responses:
                        yield response
        finally:
            if resolved.lease is not None:
                resolved.lease.release()
            log.info(
                "request=%s tenant=%s adapter=%s tokens=%d ms=%.0f",
                request_id,
                tenant,
                request.adapter or "-",
                live.completion_tokens,
                (time.monotonic() - live.began) * 1000,
            )

    async def _serve(
        self, request: generation_pb2.GenerateRequest, resolved: Resolved, live: LiveRequest
    ) -> AsyncGenerator[generation_pb2.GenerateResponse, None]:
        forwarded = self._forwarded(request, resolved.digest)
        for last_try in (False, True):
            client = self._engine()
            if resolved.digest:
                await self._registry.residency.ensure(resolved.digest)
            waited_ms = (time.monotonic() - live.began) * 1000
            try:
                async with aclosing(client.generate(forwarded)) as responses:
                    async for response in responses:
                        yield _passed_on(response, request, resolved, live, waited_ms)
                return
            except RequestError as problem:
                # An engine that forgot the version (it was restarted just now) gets it again, once.
                if last_try or not (isinstance(problem, RefusedError) and problem.reason == NOT_LOADED):
                    raise _as_asked(problem, request) from None
                self._registry.residency.forget_resident(resolved.digest)

    def _forwarded(self, request: generation_pb2.GenerateRequest, digest: str) -> engine_pb2.GenerateRequest:
        # The caller's id is for people; two callers may choose the same one.
        forwarded = engine_pb2.GenerateRequest(
            request_id=secrets.token_hex(16),
            adapter_digest=digest,
            adapter_scale=request.adapter_scale if request.HasField("adapter_scale") else 1.0,
            sampling=request.sampling,
            max_tokens=request.max_tokens or self._default_max_tokens,
            stop=request.stop,
        )
        kind = request.WhichOneof("input")
        if kind == "prompt":
            forwarded.messages.messages.add(role="user", content=request.prompt)
        elif kind == "raw_text":
            forwarded.raw_text = request.raw_text
        elif kind == "messages":
            forwarded.messages.CopyFrom(request.messages)
        else:
            forwarded.token_ids.CopyFrom(request.token_ids)
        return forwarded


def _passed_on(
    response: engine_pb2.GenerateResponse,
    request: generation_pb2.GenerateRequest,
    resolved: Resolved,
    live: LiveRequest,
    waited_ms: float,
) -> generation_pb2.GenerateResponse:
    kind = response.WhichOneof("event")
    passed = generation_pb2.GenerateResponse(**{kind: getattr(response, kind)})
    if kind == "started":
        live.phase = "prefill"
        passed.started.request_id = live.request_id
        passed.started.adapter = resolved.key.name if resolved.key else ""
        passed.started.adapter_digest = resolved.digest
    elif kind == "chunk":
        live.tokens(len(response.chunk.token_ids))
    elif kind == "finished":
        # The engine counts from when it was asked; loading the adapter came before.
        passed.finished.timings.queue_ms += waited_ms
        passed.finished.timings.time_to_first_token_ms += waited_ms
    return passed


def _as_asked(problem: RequestError, request: generation_pb2.GenerateRequest) -> RequestError:
    """Name the field that the caller set, where the engine names the one that it was given."""
    if isinstance(problem, InvalidRequestError) and request.WhichOneof("input") == "prompt":
        return InvalidRequestError(
            [("prompt" if field == "messages" else field, text) for field, text in problem.violations]
        )
    return problem


def check_request(request: generation_pb2.GenerateRequest) -> tuple[str, str, str]:
    """Tenant, adapter id and pinned digest (both may be empty).

    Raises:
        InvalidRequestError: names every field that is wrong.
    """
    wrong: list[tuple[str, str]] = []
    tenant = adapter = digest = ""
    try:
        tenant = parse_parent(request.parent)
    except InvalidRequestError as error:
        wrong += error.violations
    try:
        if request.adapter:
            adapter, digest = parse_adapter_ref(request.adapter)
    except InvalidRequestError as error:
        wrong += error.violations
    scale = request.adapter_scale
    if request.HasField("adapter_scale") and not (math.isfinite(scale) and abs(scale) <= MAX_SCALE):
        wrong.append(("adapter_scale", f"must be a number from -{MAX_SCALE:g} to {MAX_SCALE:g}, is {scale}"))
    wrong += _input_violations(request)
    wrong += _sampling_violations(request.sampling)
    if request.max_tokens < 0:
        wrong.append(("max_tokens", f"must be 0 (for the default) or more, is {request.max_tokens}"))
    if len(request.stop) > MAX_STOP_STRINGS:
        wrong.append(("stop", f"at most {MAX_STOP_STRINGS} stop strings, found {len(request.stop)}"))
    for index, text in enumerate(request.stop):
        if not 1 <= len(text) <= MAX_STOP_CHARACTERS:
            wrong.append((f"stop[{index}]", f"must have 1 to {MAX_STOP_CHARACTERS} characters, has {len(text)}"))
    if len(request.request_id) > MAX_REQUEST_ID or not request.request_id.isprintable():
        wrong.append(("request_id", f"must be at most {MAX_REQUEST_ID} printable characters"))
    if wrong:
        raise InvalidRequestError(wrong)
    return tenant, adapter, digest


def _input_violations(request: generation_pb2.GenerateRequest) -> list[tuple[str, str]]:
    kind = request.WhichOneof("input")
    if kind is None:
        return [("input", "one of prompt, messages, raw_text and token_ids is needed")]
    if kind in ("prompt", "raw_text"):
        return [] if getattr(request, kind) else [(kind, "must not be empty")]
    if kind == "token_ids":
        return [] if request.token_ids.ids else [("token_ids.ids", "must not be empty")]
    if not request.messages.messages:
        return [("messages.messages", "must not be empty")]
    return [
        (f"messages.messages[{index}].role", f"must be one of {', '.join(ROLES)}")
        for index, message in enumerate(request.messages.messages)
        if message.role not in ROLES
    ]


def _sampling_violations(sampling: generation_pb2.SamplingParams) -> list[tuple[str, str]]:
    wrong: list[tuple[str, str]] = []

    def check(field: str, ok: bool, rule: str) -> None:
        if sampling.HasField(field) and not ok:
            wrong.append((f"sampling.{field}", f"must be {rule}, is {getattr(sampling, field):g}"))

    temperature = sampling.temperature
    check("temperature", math.isfinite(temperature) and temperature >= 0, "0 or more")
    check("top_p", 0 < sampling.top_p <= 1, "above 0 and at most 1")
    check("top_k", sampling.top_k >= 0, "0 or more")
    check("min_p", 0 <= sampling.min_p <= 1, "from 0 to 1")
    return wrong
