"""The daemon process: lock, sockets, services, signals, and the way down.

:func:`run` is what `optiq serve` calls. Nothing here, nor anything that it imports, imports MLX.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from optiq_client import paths
from optiq_core.errors import OptiqError
from optiq_core.heap import freeze_heap
from optiq_daemon.app import VERSION, App
from optiq_daemon.config import ConfigError, Configuration, Settings, bind_address, http_is_public, is_public
from optiq_daemon.gateway.server import HttpServer
from optiq_daemon.interceptor import MAX_REQUEST_BYTES, ErrorInterceptor
from optiq_daemon.logs import log_request
from optiq_daemon.names import AdapterKey
from optiq_daemon.services.adapters import AdapterService
from optiq_daemon.services.events import EventService
from optiq_daemon.services.generation import GenerationService
from optiq_daemon.services.routes import RouteService
from optiq_daemon.services.runtime import RuntimeService
from optiq_daemon.services.tenants import TenantService
from optiq_daemon.services.training import TrainingService
from optiq_daemon.states import EngineState
from optiq_daemon.tls import server_credentials
from optiq_daemon.tracing import Tracing
from optiq_protos.v1 import (
    adapter_pb2,
    adapter_pb2_grpc,
    event_pb2,
    event_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    route_pb2,
    route_pb2_grpc,
    runtime_pb2,
    runtime_pb2_grpc,
    tenant_pb2,
    tenant_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)

log = logging.getLogger(__name__)

# Watches do not end by themselves; this is how long they get after requests have drained.
CLOSE_GRACE_S = 0.2

SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (generation_pb2, "GenerationService"),
        (adapter_pb2, "AdapterService"),
        (training_pb2, "TrainingService"),
        (runtime_pb2, "RuntimeService"),
        (event_pb2, "EventService"),
        (tenant_pb2, "TenantService"),
        (route_pb2, "RouteService"),
    )
)
# What needs the engine. The others answer as soon as the socket is there.
ENGINE_SERVICES = ("", SERVICES[0])


class AlreadyRunningError(OptiqError):
    """Another daemon serves this home."""


class EngineFailedError(OptiqError):
    """The first engine process could not load the base."""


def run(configuration: Configuration, mounts: dict[AdapterKey, Path] | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        AlreadyRunningError: another daemon serves this home.
        EngineFailedError: the base cannot be loaded.
        ConfigError: an address that cannot be bound.
    """
    settings = configuration.settings
    home = settings.home_path
    os.umask(0o077)
    for folder in (home, paths.adapters_path(home), paths.jobs_path(home), paths.logs_path(home)):
        folder.mkdir(parents=True, exist_ok=True)
    paths.run_path(home).mkdir(mode=0o700, exist_ok=True)
    paths.run_path(home).chmod(0o700)
    with _locked(home):
        failure = asyncio.run(_serve(settings, mounts or {}))
    if failure:
        raise EngineFailedError(failure)


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Hold the home's lock, and its pid file."""
    pid_file = paths.pid_path(home)
    with paths.lock_path(home).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = pid_file.read_text().strip() if pid_file.exists() else "unknown"
            raise AlreadyRunningError(
                f"a daemon (pid {owner}) serves {home} already; stop it with 'optiq daemon stop', "
                "or choose another folder with --home"
            ) from None
        pid_file.write_text(f"{os.getpid()}\n")
        try:
            yield
        finally:
            pid_file.unlink(missing_ok=True)


async def _serve(settings: Settings, mounts: dict[AdapterKey, Path]) -> str:
    """Serve to the end; returns why the engine could not start at all, if so."""
    app = App(settings, mounts)
    stopping = _signals()
    health = health_aio.HealthServicer()
    server = _server(app, health)
    if not app.tenants.tokens.any():
        _refuse_public(settings)
    address = _bind(server, settings)
    http = HttpServer(app, settings) if settings.http_port else None
    app.generations.observe(log_request)
    tracing = Tracing(settings.trace_endpoint, version=VERSION) if settings.trace_endpoint else None
    if tracing is not None:
        app.generations.observe(tracing.ended)
        app.registry.residency.on_load(tracing.loaded)
    failure = ""
    try:
        await _set_health(health, EngineState.STARTING)
        await app.start()
        await server.start()
        if http is not None:
            http.start()
            log.info("HTTP on %s", http.url)
        freeze_heap()
        log.info("listening on %s, home %s, model %s", address, settings.home, settings.model)
        follow = asyncio.create_task(_follow_engine(app, health), name="health")
        stop = asyncio.create_task(stopping.wait(), name="signals")
        await asyncio.wait([follow, stop], return_when=asyncio.FIRST_COMPLETED)
        if follow.done():
            failure = follow.result()
        follow.cancel()
        stop.cancel()
        await health.enter_graceful_shutdown()
        await _drain(app, settings.drain_seconds, stopping)
    finally:
        if http is not None:
            await http.close()
        await server.stop(CLOSE_GRACE_S)
        await app.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)
    log.info("stopped")
    return failure


def _refuse_public(settings: Settings) -> None:
    """Refuse addresses that other machines reach: nobody could tell callers apart yet."""
    addresses = {f"address {settings.address!r}": is_public(settings)}
    addresses[f"http_host {settings.http_host!r}"] = http_is_public(settings)
    for address in (address for address, public in addresses.items() if public):
        raise ConfigError(
            f"{address}: other machines could reach it, and there is no token yet; start once without it, make one "
            "with 'optiq tenants token TENANT', then start again"
        )


def _server(app: App, health: health_aio.HealthServicer) -> Any:
    server = grpc.aio.server(
        interceptors=[ErrorInterceptor(app.gatekeeper)],
        options=[
            ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
            ("grpc.max_metadata_size", 64 * 1024),
            # Clients ping every half minute to notice a daemon that went away, also while nothing is said.
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            # A second daemon on the same TCP port must fail, not share it.
            ("grpc.so_reuseport", 0),
        ],
    )
    add: list[tuple[Any, Any]] = [
        (
            generation_pb2_grpc.add_GenerationServiceServicer_to_server,
            GenerationService(app.generations.serve),
        ),
        (
            adapter_pb2_grpc.add_AdapterServiceServicer_to_server,
            AdapterService(app.registry, app.ingest, app.tenants, lambda: app.engine.client),
        ),
        (training_pb2_grpc.add_TrainingServiceServicer_to_server, TrainingService(app.jobs, app.store)),
        (runtime_pb2_grpc.add_RuntimeServiceServicer_to_server, RuntimeService(app.status, app.tenancy.view)),
        (event_pb2_grpc.add_EventServiceServicer_to_server, EventService(app.events)),
        (
            tenant_pb2_grpc.add_TenantServiceServicer_to_server,
            TenantService(app.tenants, app.usage, app.registry, app.tenancy.load, app.remove_tenant),
        ),
        (
            route_pb2_grpc.add_RouteServiceServicer_to_server,
            RouteService(app.routes, app.router, app.shadows, app.tenants),
        ),
        (health_pb2_grpc.add_HealthServicer_to_server, health),
    ]
    for register, servicer in add:
        register(servicer, server)
    health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    reflection.enable_server_reflection((*SERVICES, health_name, reflection.SERVICE_NAME), server)
    return server


def _bind(server: Any, settings: Settings) -> str:
    """Listen on the home's socket always, and on the configured address if it is another."""
    addresses = list(dict.fromkeys((f"unix:{paths.socket_path(settings.home_path)}", bind_address(settings))))
    for address in addresses:
        if address.startswith("unix:"):
            # Left behind by a daemon that was killed: the lock says that nobody listens there.
            Path(address.removeprefix("unix:")).unlink(missing_ok=True)
        credentials = None if address.startswith("unix:") else server_credentials(settings)
        try:
            bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        except RuntimeError:
            bound = 0
        if not bound:
            raise ConfigError(f"cannot listen on {address}: it is in use, or not an address of this machine")
    return ", ".join(addresses)


async def _follow_engine(app: App, health: health_aio.HealthServicer) -> str:
    """Mirror the engine's state in the health service; ends, with the reason, only if the first start fails."""
    served = False
    while True:
        ticket = app.engine.changed.ticket()
        state = app.engine.state
        await _set_health(health, state)
        served = served or state is EngineState.SERVING
        if state is EngineState.FAILED and not served:
            return f"the engine cannot start: {app.engine.message}"
        await ticket.wait()


async def _set_health(health: health_aio.HealthServicer, state: EngineState) -> None:
    status = health_pb2.HealthCheckResponse
    for service in ("", *SERVICES):
        serving = state is EngineState.SERVING or service not in ENGINE_SERVICES
        await health.set(service, status.SERVING if serving else status.NOT_SERVING)


async def _drain(app: App, seconds: float, stopping: _Stopping) -> None:
    log.info("draining for up to %g s", seconds)
    drain = asyncio.create_task(app.drain(seconds), name="drain")
    again = asyncio.create_task(stopping.again.wait(), name="second signal")
    await asyncio.wait([drain, again], return_when=asyncio.FIRST_COMPLETED)
    for task in (drain, again):
        task.cancel()
    await asyncio.gather(drain, again, return_exceptions=True)


class _Stopping(asyncio.Event):
    """Set by the first signal; `again` by the second, which ends the drain."""

    def __init__(self) -> None:
        super().__init__()
        self.again = asyncio.Event()

    def signal(self) -> None:
        (self.again if self.is_set() else self).set()


def _signals() -> _Stopping:
    stopping = _Stopping()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.signal)
    loop.add_signal_handler(signal.SIGUSR1, _dump)
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    return stopping


def _dump() -> None:
    """Write every task and thread with its stack to the log."""
    lines = []
    for task in asyncio.all_tasks():
        lines.append(f"task {task.get_name()}")
        lines += [_where(frame) for frame in task.get_stack()]
    for thread in threading.enumerate():
        lines.append(f"thread {thread.name}")
        frame = sys._current_frames().get(thread.ident or 0)
        while frame is not None:
            lines.append(_where(frame))
            frame = frame.f_back
    log.warning("SIGUSR1: tasks and threads\n%s", "\n".join(lines))


def _where(frame: FrameType) -> str:
    # Not traceback's formatting: it fails on frames of compiled coroutines, which have no line number.
    return f"    {frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"
