"""Runs the gateway on the daemon's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import uvicorn

from optiq_daemon.app import App
from optiq_daemon.config import ConfigError, Settings, http_is_public
from optiq_daemon.gateway.metrics import Metrics
from optiq_daemon.gateway.routes import make_asgi
from optiq_daemon.tls import certificate_files

log = logging.getLogger(__name__)

# Answers have drained by then; idle connections are just closed.
CLOSE_GRACE_S = 1
BACKLOG = 1024


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the daemon has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """The gateway's listener.

    Raises:
        ConfigError: the address cannot be bound.
    """

    def __init__(self, app: App, settings: Settings) -> None:
        metrics = Metrics()
        app.generations.observe(metrics.ended)
        self._scheme = "https" if http_is_public(settings) else "http"
        self._socket = _listen(settings.http_host, settings.http_port)
        self._server = _Server(
            uvicorn.Config(
                make_asgi(app, metrics, loopback=not http_is_public(settings)),
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=CLOSE_GRACE_S,
                **_tls(settings),
            )
        )
        self._task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._socket.getsockname()[:2]
        return f"{self._scheme}://[{host}]:{port}" if ":" in host else f"{self._scheme}://{host}:{port}"

    def start(self) -> None:
        """Accept connections."""
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="http")

    async def close(self) -> None:
        """End all connections."""
        self._server.should_exit = True
        if self._task is not None:
            await asyncio.wait([self._task])
        self._socket.close()


def _tls(settings: Settings) -> dict[str, Any]:
    """uvicorn's TLS settings; none on a loopback address."""
    if not http_is_public(settings):
        return {}
    certificate, key = certificate_files(settings)
    tls: dict[str, Any] = {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}
    if settings.tls_client_ca:
        tls |= {"ssl_ca_certs": settings.tls_client_ca, "ssl_cert_reqs": ssl.CERT_REQUIRED}
    return tls


def _listen(host: str, port: int) -> socket.socket:
    try:
        info = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        family, _, _, _, address = info[0]
        listening = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(f"cannot listen on http://{host}:{port}: {error.strerror}") from None
    listening.setblocking(False)
    return listening
