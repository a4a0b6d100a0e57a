"""The engine process: one base, its adapters and its batches, behind a private Unix socket.

``python -m optiq_daemon.engine_process --model M --socket PATH --stream FD``

Serves ``optiq.internal.v1.EngineService`` on the socket, and requests on the stream. The base is found and loaded after
the socket is up: ``GetBase`` answers once it is there, or with FAILED_PRECONDITION and the reason, and the process ends
with 1. The process ends when its stdin does, which is when the daemon has died. Its log goes to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import socket
import sys
import threading
from pathlib import Path

import grpc

from optiq_core.base.load_in import LOAD_IN
from optiq_core.errors import OptiqError
from optiq_daemon.engine_servicer import EngineServicer
from optiq_daemon.interceptor import MAX_REQUEST_BYTES, ErrorInterceptor
from optiq_protos.internal.v1 import engine_pb2_grpc

log = logging.getLogger("optiq.engine")


async def serve(settings: argparse.Namespace) -> int:
    """Serve until stdin ends; returns the exit code."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def watch_lifeline() -> None:
        with contextlib.suppress(OSError, ValueError):
            while sys.stdin.buffer.read(4096):
                pass
        with contextlib.suppress(RuntimeError):  # the loop ended first
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=watch_lifeline, name="lifeline", daemon=True).start()
    limits = [
        ("grpc.max_receive_message_length", 8 * MAX_REQUEST_BYTES),
        ("grpc.max_send_message_length", 8 * MAX_REQUEST_BYTES),
    ]
    server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=limits)
    servicer = EngineServicer(settings)
    engine_pb2_grpc.add_EngineServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    # What a process that was killed left behind; the daemon's lock keeps a second owner away.
    settings.socket.unlink(missing_ok=True)
    server.add_insecure_port(f"unix:{settings.socket}")
    await server.start()
    loading = asyncio.create_task(servicer.load_base())
    ending = asyncio.create_task(ended.wait())
    await asyncio.wait({loading, ending}, return_when=asyncio.FIRST_COMPLETED)
    failed = loading.done() and loading.exception() is not None
    if failed:
        error = loading.exception()
        log.error("the base cannot be loaded: %s", error, exc_info=None if isinstance(error, OptiqError) else error)
        # Callers that wait in GetBase get their answer before the server goes.
        await server.stop(grace=1.0)
        await servicer.close()
        return 1
    await ending
    await server.stop(grace=None)
    await servicer.close()
    return 0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the process's flags."""
    parser = argparse.ArgumentParser(prog="optiq_daemon.engine_process", description="Serve one base on a socket.")
    parser.add_argument("--model", required=True, help="folder, .gguf file, hub id, or 'embedded'")
    parser.add_argument("--socket", required=True, type=Path, help="private Unix socket to serve on")
    parser.add_argument("--stream", required=True, type=_inherited, help="descriptor of the stream of requests")
    parser.add_argument("--load-in", choices=LOAD_IN, help="quantize an unquantized base while it is loaded")
    parser.add_argument("--max-batch", type=int, default=16, help="rows that decode together at most")
    parser.add_argument("--max-queue", type=int, default=256, help="requests that may wait")
    parser.add_argument("--kv", default="float", help="KV cache of every layer: float, or METHOD:BITS")
    parser.add_argument("--kv-config", type=Path, help="KV cache of each layer: a kv_config.json")
    parser.add_argument("--prefill-chunk", type=int, default=512, help="prompt tokens processed at once at most")
    parser.add_argument("--kv-cache-mb", type=int, default=0, help="KV caches of all rows; 0: half of what is left")
    parser.add_argument("--prefix-cache-mb", type=int, default=0, help="KV caches of earlier prompts; 0: none")
    return parser.parse_args(arguments)


def _inherited(descriptor: str) -> socket.socket:
    """The connected socket that the daemon left to this process."""
    connected = socket.socket(fileno=int(descriptor))
    connected.setblocking(True)
    return connected


def main() -> None:
    """Entry point of the process."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    sys.exit(asyncio.run(serve(parse())))


if __name__ == "__main__":
    main()
