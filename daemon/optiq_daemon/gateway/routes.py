"""The gateway's routes. They translate: what a request may do is decided on the path that gRPC uses as well."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from optiq_daemon.app import App
from optiq_daemon.errors import NotFoundError
from optiq_daemon.gateway.answers import Answer, Json, refusal
from optiq_daemon.gateway.anthropic_bodies import MessagesBody, message_request
from optiq_daemon.gateway.anthropic_shape import MessageShape
from optiq_daemon.gateway.bodies import read_body
from optiq_daemon.gateway.callers import check_sees_all, tenant_of
from optiq_daemon.gateway.choices import run
from optiq_daemon.gateway.metrics import Metrics
from optiq_daemon.gateway.names import base_name
from optiq_daemon.gateway.openai_bodies import ChatBody, Sampled, TextBody, chat_requests, text_requests
from optiq_daemon.gateway.openai_shapes import ChatShape, OpenAIShape, TextShape
from optiq_daemon.gateway.problems import Problem, problem_of
from optiq_daemon.records import AdapterRecord
from optiq_daemon.routes import RouteRecord
from optiq_daemon.states import EngineState
from optiq_protos.v1 import generation_pb2 as pb


class Gateway:
    """The routes' handlers.

    Args:
        app: the daemon's parts.
    """

    def __init__(self, app: App, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._base = base_name(app.settings.model)

    async def chat_completions(self, request: Request) -> ASGIApp:
        """POST /v1/chat/completions."""
        tenant = tenant_of(request)
        body = await read_body(request, ChatBody)
        requests = chat_requests(body, tenant=tenant, base=self._base)
        return self._openai(ChatShape, body, requests)

    async def completions(self, request: Request) -> ASGIApp:
        """POST /v1/completions."""
        tenant = tenant_of(request)
        body = await read_body(request, TextBody)
        requests = text_requests(body, tenant=tenant, base=self._base)
        return self._openai(TextShape, body, requests)

    async def messages(self, request: Request) -> ASGIApp:
        """POST /v1/messages."""
        tenant = tenant_of(request)
        body = await read_body(request, MessagesBody)
        wanted = message_request(body, tenant=tenant, base=self._base)
        shape = MessageShape(body.model, body.stop_sequences or [])
        return Answer(run(self._app.generations.serve, [wanted]), shape, stream=bool(body.stream))

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        tenant = tenant_of(request)
        models = [self._base_model(), *self._named_models(tenant)]
        if "anthropic-version" in request.headers:
            models = [_anthropic_model(model) for model in models]
            return Json({"data": models, "has_more": False, "first_id": models[0]["id"], "last_id": models[-1]["id"]})
        return Json({"object": "list", "data": models})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{id}."""
        tenant, name = tenant_of(request), request.path_params["name"]
        models = [self._base_model()] if name == self._base else []
        models += [model for model in self._named_models(tenant) if model["id"] == name]
        if not models:
            raise NotFoundError("adapter", name[:128], f"there is no model {name[:128]!r}; GET /v1/models lists them")
        return Json(_anthropic_model(models[0]) if "anthropic-version" in request.headers else models[0])

    async def health(self, request: Request) -> Response:
        """GET /healthz: 200 while requests can be served."""
        state = self._app.engine.state
        serving = state is EngineState.SERVING
        return Json(
            {"status": "ok" if serving else "unavailable", "engine": state.name.lower()}, 200 if serving else 503
        )

    async def metrics(self, request: Request) -> Response:
        """GET /metrics, for Prometheus."""
        check_sees_all(request)
        content, media_type = self._metrics.page(await self._app.status())
        return Response(content, media_type=media_type)

    def _openai(self, shape: type[OpenAIShape], body: Sampled, requests: list[pb.GenerateRequest]) -> Answer:
        made = shape(body.model, usage=body.usage_wanted, count=len(requests))
        updates = run(self._app.generations.serve, requests)
        return Answer(updates, made, count=len(requests), stream=bool(body.stream))

    def _named_models(self, tenant: str) -> list[dict[str, Any]]:
        """What a tenant can name besides the base. A route hides the adapter whose name it has taken over."""
        models = {record.adapter: self._adapter_model(record) for record in self._served(tenant)}
        models |= {route.id: self._route_model(route) for route in self._app.routes.of(tenant)}
        return list(models.values())

    def _served(self, tenant: str) -> list[AdapterRecord]:
        """A tenant's own adapters, then those that others share under a name that it does not have."""
        records = {record.adapter: record for record in self._app.registry.records(tenant)}
        for key in self._app.tenants.shared():
            if (shared := self._app.registry.find(key)) is not None:
                records.setdefault(key.adapter, shared)
        return [record for record in records.values() if record.digest]

    def _base_model(self) -> dict[str, Any]:
        return {"id": self._base, "object": "model", "created": int(self._app.start_time), "owned_by": "optiq"}

    def _adapter_model(self, record: AdapterRecord) -> dict[str, Any]:
        return {
            "id": record.adapter,
            "object": "model",
            "created": int(record.create_time),
            "owned_by": f"tenants/{record.tenant}",
            "root": f"{record.adapter}@{record.digest}",
            "parent": self._base,
        }

    def _route_model(self, route: RouteRecord) -> dict[str, Any]:
        return {
            "id": route.id,
            "object": "model",
            "created": int(route.create_time),
            "owned_by": f"tenants/{route.tenant}",
            "root": f"tenants/{route.tenant}/routes/{route.id}",
            "parent": self._base,
        }


class LoopbackOnly:
    """Refuses requests whose Host is not this machine.

    A web page can have its own name resolve to 127.0.0.1 and would then be allowed to read the answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 403."""
        if scope["type"] == "http":
            host = Request(scope).headers.get("host", "")
            if not _is_this_machine(host):
                problem = Problem(403, f"Host {host[:80]!r} is not a loopback address", "HOST_NOT_ALLOWED", "Host")
                await refusal(problem, problem.openai())(scope, receive, send)
                return
        await self._app(scope, receive, send)


def make_asgi(app: App, metrics: Metrics, *, loopback: bool) -> ASGIApp:
    """The gateway as an ASGI application.

    Args:
        loopback: only this machine is to reach it.
    """
    gateway = Gateway(app, metrics)
    routes = [
        _route("/v1/chat/completions", gateway.chat_completions, "POST"),
        _route("/v1/completions", gateway.completions, "POST"),
        _route("/v1/messages", gateway.messages, "POST"),
        _route("/v1/models", gateway.models, "GET"),
        _route("/v1/models/{name:path}", gateway.model, "GET"),
        _route("/healthz", gateway.health, "GET"),
        _route("/metrics", gateway.metrics, "GET"),
    ]
    served = Starlette(routes=routes, exception_handlers={HTTPException: _http_problem, Exception: _problem})
    served.state.gatekeeper = app.gatekeeper
    return LoopbackOnly(served) if loopback else served


def _route(path: str, handler: Callable[[Request], Awaitable[Any]], method: str) -> Route:
    async def answered(request: Request) -> Any:
        try:
            return await handler(request)
        except Exception as error:
            return _problem(request, error)

    return Route(path, answered, methods=[method])


def _problem(request: Request, error: Exception) -> Json:
    problem = problem_of(error, request.url.path)
    return refusal(problem, _body(request, problem))


def _http_problem(request: Request, error: Exception) -> Json:
    assert isinstance(error, HTTPException)
    path = request.url.path[:128]
    what = "is not served here" if error.status_code == 404 else "does not take this method"
    problem = Problem(error.status_code, f"{path} {what}", "NOT_SERVED", "path")
    return refusal(problem, _body(request, problem))


def _body(request: Request, problem: Problem) -> dict[str, Any]:
    is_anthropic = request.url.path == "/v1/messages" or "anthropic-version" in request.headers
    return problem.anthropic() if is_anthropic else problem.openai()


def _anthropic_model(model: dict[str, Any]) -> dict[str, Any]:
    created = datetime.fromtimestamp(model["created"], UTC).isoformat().replace("+00:00", "Z")
    return {"type": "model", "id": model["id"], "display_name": model["id"], "created_at": created}


def _is_this_machine(host: str) -> bool:
    name = host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
