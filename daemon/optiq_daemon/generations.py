"""The path of every generation request, from gRPC or HTTP: checked, admitted, leased, the engine's stream passed on."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, aclosing
from typing import NamedTuple

from optiq_daemon.admission import Admission, Ticket
from optiq_daemon.engine_client import EngineClient
from optiq_daemon.errors import InvalidRequestError, RefusedError, RequestError
from optiq_daemon.live import LiveRequest, LiveTable
from optiq_daemon.quotas import QuotaGate
from optiq_daemon.registry import Registry
from optiq_daemon.request_checks import AskedAdapter, CheckedRequest, check_request
from optiq_daemon.resident_quota import ResidentQuota
from optiq_daemon.router import Decision, Router, split_target
from optiq_daemon.shadow import Answer, Shadows, Work, begin
from optiq_daemon.slots import Lease
from optiq_protos.internal.v1 import engine_pb2
from optiq_protos.v1 import generation_pb2

NOT_LOADED = "ADAPTER_NOT_LOADED"
CHARACTERS_PER_TOKEN = 4


class Part(NamedTuple):
    """A leased version that serves a request, with its weight in the blend."""

    name: str
    lease: Lease
    weight: float

    @property
    def owner(self) -> str:
        """Whose adapter it is."""
        return self.name.split("/")[1]


class Generations:
    """Serves requests with the engine.

    Args:
        engine: gives the serving engine's client, or raises UnavailableError.
        default_max_tokens: for requests that do not say.
        default_sampling: likewise; a field that a request sets wins over it.
    """

    def __init__(
        self,
        registry: Registry,
        router: Router,
        *,
        live: LiveTable,
        gate: QuotaGate,
        admission: Admission,
        engine: Callable[[], EngineClient],
        shadows: Shadows,
        default_max_tokens: int,
        default_sampling: generation_pb2.SamplingParams | None = None,
    ) -> None:
        self._registry = registry
        self._router = router
        self._gate = gate
        self._resident = ResidentQuota(registry, gate)
        self._admission = admission
        self._live = live
        self._engine = engine
        self._default_max_tokens = default_max_tokens
        self._default_sampling = default_sampling or generation_pb2.SamplingParams()
        self._shadows = shadows

    async def serve(
        self, request: generation_pb2.GenerateRequest
    ) -> AsyncGenerator[generation_pb2.GenerateResponse, None]:
        """Stream one completion; close the generator if it is left early, which frees the row at the next step.

        Raises:
            RequestError: before the first response or after any.
        """
        checked = check_request(request)
        tenant = checked.tenant
        request_id = request.request_id or secrets.token_hex(8)
        shadow: Work | None = None
        live = LiveRequest(request_id, tenant, _asked_for(request))
        self._gate.check(tenant, "concurrent_requests", self._live.count(tenant))
        self._gate.check_rate(tenant)
        chosen, decision = self._choose(request, checked, request_id)
        with ExitStack() as leases:
            parts = self._acquire(chosen, leases)
            leases.enter_context(self._live.admit(live))
            live.parts = [_served(part, request) for part in parts]
            live.routed(decision)
            if decision is not None and decision.shadow:
                shadow = self._shadow_work(request, tenant, decision, parts)
            async with aclosing(self._serve(request, parts, live)) as responses:
                async for response in responses:
                    if shadow is not None:
                        shadow.answered.take(response)
                    yield response
        if shadow is not None:
            self._shadows.offer(shadow)

    def _choose(
        self, request: generation_pb2.GenerateRequest, checked: CheckedRequest, request_id: str
    ) -> tuple[CheckedRequest, Decision | None]:
        """What a route makes of the request; blends and the bare base go as they are."""
        if request.adapters or not (request.adapter or request.route):
            return checked, None
        asked = checked.adapters[0] if checked.adapters else AskedAdapter("", "", 1.0)
        chosen = self._router.choose(
            checked.tenant,
            asked.adapter,
            asked.digest,
            route=request.route,
            sticky_key=request.sticky_key,
            request_id=request_id,
        )
        adapters = (AskedAdapter(chosen.adapter, chosen.version, 1.0),) if chosen.adapter else ()
        return checked._replace(adapters=adapters), chosen.decision

    def _shadow_work(
        self, request: generation_pb2.GenerateRequest, tenant: str, decision: Decision, parts: list[Part]
    ) -> Work:
        """What a shadow runs once the request has ended, with the right of its caller."""
        adapter, version = split_target(decision.shadow)
        wanted = CheckedRequest(tenant, (AskedAdapter(adapter, version, 1.0),) if adapter else ())

        async def responses(answer: Answer) -> AsyncGenerator[engine_pb2.GenerateResponse, None]:
            with ExitStack() as leases:
                shadows = self._acquire(wanted, leases)
                await self._ensure(shadows)
                answer.shadow_digest = shadows[0].lease.digest if shadows else ""
                generating = self._engine().generate(self._forwarded(request, shadows, tenant))
                async with aclosing(generating) as generated:
                    async for response in generated:
                        yield response

        return Work(decision, begin(decision, parts[0].lease.digest if parts else ""), responses)

    def _acquire(self, checked: CheckedRequest, leases: ExitStack) -> list[Part]:
        """Resolve every adapter of a request, once; the leases are given up when the stack ends."""
        if not checked.adapters:
            self._router.acquire(checked.tenant, "", "")
        parts = []
        for asked in checked.adapters:
            resolved = self._router.acquire(checked.tenant, asked.adapter, asked.digest)
            assert resolved.key is not None
            assert resolved.lease is not None
            parts.append(Part(resolved.key.name, leases.enter_context(resolved.lease), asked.weight))
        return parts

    async def _serve(
        self, request: generation_pb2.GenerateRequest, parts: list[Part], live: LiveRequest
    ) -> AsyncGenerator[generation_pb2.GenerateResponse, None]:
        # Loaded before it queues: a row that waits for its adapter would be nobody's.
        await self._ensure(parts)
        longest = request.max_tokens or self._default_max_tokens
        with self._admission.enter(live.tenant, _estimate(request), longest) as ticket:
            async for position in ticket.turn():
                live.position = position
                yield generation_pb2.GenerateResponse(queued=generation_pb2.Queued(position=position))
            live.position = 0
            async with aclosing(self._run(request, parts, live, ticket)) as responses:
                async for response in responses:
                    yield response

    async def _ensure(self, parts: list[Part]) -> None:
        self._engine()
        for owner in {part.owner for part in parts}:
            await self._resident.make_room(owner, [part.lease.digest for part in parts if part.owner == owner])
        if parts:
            await self._registry.residency.enter(*(part.lease for part in parts))

    async def _run(
        self, request: generation_pb2.GenerateRequest, parts: list[Part], live: LiveRequest, ticket: Ticket
    ) -> AsyncGenerator[generation_pb2.GenerateResponse, None]:
        forwarded = self._forwarded(request, parts, live.tenant)
        forwarded.urgent = ticket.urgent
        for last_try in (False, True):
            await self._ensure(parts)
            client = self._engine()
            waited_ms = (time.monotonic() - live.began) * 1000
            try:
                async with aclosing(client.generate(forwarded)) as responses:
                    async for response in responses:
                        _count(response, ticket)
                        # Its own queue is behind this one: a place there lasts a step at most, and says nothing.
                        if response.WhichOneof("event") != "queued":
                            yield _passed_on(response, live, waited_ms)
                return
            except RequestError as problem:
                # An engine that forgot a version (it was restarted just now) gets it again, once.
                if last_try or not (isinstance(problem, RefusedError) and problem.reason == NOT_LOADED):
                    raise _as_asked(problem, request) from None
                for part in parts:
                    self._registry.residency.forget_resident(part.lease.digest)

    def _forwarded(
        self, request: generation_pb2.GenerateRequest, parts: list[Part], tenant: str
    ) -> engine_pb2.GenerateRequest:
        sampling = generation_pb2.SamplingParams()
        sampling.CopyFrom(self._default_sampling)
        sampling.MergeFrom(request.sampling)
        # The caller's id is for people; two callers may choose the same one.
        forwarded = engine_pb2.GenerateRequest(
            request_id=secrets.token_hex(16),
            adapters=[engine_pb2.AdapterPart(digest=part.lease.digest, weight=part.weight) for part in parts],
            adapter_scale=_scale(request),
            cache_namespace=tenant,
            sampling=sampling,
            max_tokens=request.max_tokens or self._default_max_tokens,
            stop=request.stop,
            top_logprobs=request.top_logprobs if request.HasField("top_logprobs") else None,
            json_schema=request.json_schema,
            tools=request.tools,
            tool_choice=request.tool_choice,
            tool_name=request.tool_name,
            one_tool_call=request.one_tool_call,
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


def _estimate(request: generation_pb2.GenerateRequest) -> int:
    """Prompt tokens, roughly: the engine counts them when it begins."""
    if request.WhichOneof("input") == "token_ids":
        return len(request.token_ids.ids)
    characters = len(request.prompt) + len(request.raw_text) + sum(len(m.content) for m in request.messages.messages)
    return characters // CHARACTERS_PER_TOKEN + 1


def _count(response: engine_pb2.GenerateResponse, ticket: Ticket) -> None:
    kind = response.WhichOneof("event")
    if kind == "started":
        ticket.started(response.started.prompt_tokens - response.started.cached_tokens)
    elif kind == "chunk":
        ticket.generated(len(response.chunk.token_ids))


def _passed_on(
    response: engine_pb2.GenerateResponse, live: LiveRequest, waited_ms: float
) -> generation_pb2.GenerateResponse:
    kind = response.WhichOneof("event")
    passed = generation_pb2.GenerateResponse(**{kind: getattr(response, kind)})
    if kind == "started":
        live.phase = "prefill"
        passed.started.request_id = live.request_id
        passed.started.adapters.extend(live.parts)
        if len(live.parts) == 1:
            passed.started.adapter = live.parts[0].name
            passed.started.adapter_digest = live.parts[0].digest
        passed.started.route, passed.started.route_why = live.route, live.why
    elif kind == "chunk":
        live.tokens(len(response.chunk.token_ids))
    elif kind == "finished":
        # The engine counts from when it was asked; loading the adapter came before.
        passed.finished.timings.queue_ms += waited_ms
        passed.finished.timings.time_to_first_token_ms += waited_ms
    return passed


def _scale(request: generation_pb2.GenerateRequest) -> float:
    return request.adapter_scale if request.HasField("adapter_scale") else 1.0


def _served(part: Part, request: generation_pb2.GenerateRequest) -> generation_pb2.ServedAdapter:
    return generation_pb2.ServedAdapter(name=part.name, digest=part.lease.digest, weight=part.weight * _scale(request))


def _asked_for(request: generation_pb2.GenerateRequest) -> str:
    """The request's adapters in one line, for people."""
    if not request.adapters:
        return request.adapter or request.route
    return ", ".join(f"{part.name}={part.weight if part.HasField('weight') else 1:g}" for part in request.adapters)


def _as_asked(problem: RequestError, request: generation_pb2.GenerateRequest) -> RequestError:
    """Name the field that the caller set, where the engine names the one that it was given."""
    if isinstance(problem, InvalidRequestError) and request.WhichOneof("input") == "prompt":
        return InvalidRequestError(
            [("prompt" if field == "messages" else field, text) for field, text in problem.violations]
        )
    return problem
