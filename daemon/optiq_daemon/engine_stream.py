"""The engine's end of the stream of requests and tokens; the daemon's is :mod:`optiq_daemon.engine_link`.

Tokens are written by the engine's own thread, once a step, for all rows: any other thread would have to wait for the
interpreter's lock, which the engine's thread holds nearly half of the time to build graphs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from optiq_daemon import errors
from optiq_daemon.engine_wire import engine_request, engine_response
from optiq_daemon.frames import FrameReader, frame
from optiq_daemon.tool_calls import ToolCallReader, constraint_of, with_calls
from optiq_protos.internal.v1 import engine_pb2 as pb
from optiq_protos.v1 import generation_pb2

if TYPE_CHECKING:
    from optiq_core.base import LoadedBase
    from optiq_core.engine.constraint import ConstraintCompiler
    from optiq_core.engine.engine import Engine
    from optiq_core.engine.types import EngineRequest, Event

log = logging.getLogger("optiq.engine")

_READ_BYTES = 1 << 16


class StepWriter:
    """Collects what rows are told, and sends it.

    Args:
        connected: blocking. A daemon that does not read stops the engine once the socket's buffer is full; it holds
            thousands of steps.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._lock = threading.Lock()
        self._step = pb.StreamStep()

    def add(self, request_id: str, response: pb.GenerateResponse) -> None:
        """Note a response for the next :meth:`flush`."""
        with self._lock:
            self._step.events.add(request_id=request_id, response=response)

    def flush(self) -> None:
        """Send what was noted."""
        with self._lock:
            if self._step.events:
                self._send()

    def fail(self, request_id: str, error: BaseException) -> None:
        """Send, at once, that a request has failed."""
        status = errors.status_of(error, "Generate").SerializeToString()
        with self._lock:
            self._step.events.add(request_id=request_id, failed_status=status)
            self._send()

    def _send(self) -> None:
        # Without a daemon there is nobody to tell; this process is about to end as well.
        with contextlib.suppress(OSError):
            self._socket.sendall(frame(self._step.SerializeToString()))
        self._step.Clear()


class RequestReader:
    """Reads requests on a thread of its own and submits them to the engine.

    Args:
        connected: ends the thread when it is closed.
        compiler: makes what answers are held to; called on a worker thread.
    """

    def __init__(
        self,
        connected: socket.socket,
        writer: StepWriter,
        *,
        base: LoadedBase,
        engine: Engine,
        compiler: Callable[[], ConstraintCompiler],
    ) -> None:
        self._socket, self._writer = connected, writer
        self._base, self._engine, self._compiler = base, engine, compiler
        # A schema takes milliseconds, but the first one of a base takes a second.
        self._preparers = ThreadPoolExecutor(2, thread_name_prefix="schemas")
        self._lock = threading.Lock()
        self._in_preparation: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="requests", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._preparers.shutdown()
        self._socket.close()

    def _run(self) -> None:
        frames = FrameReader()
        with contextlib.suppress(OSError):
            while data := self._socket.recv(_READ_BYTES):
                for message in frames.push(data):
                    self._take(pb.StreamRequest.FromString(message))

    def _take(self, message: pb.StreamRequest) -> None:
        if message.WhichOneof("what") == "cancel":
            with self._lock:
                self._in_preparation.discard(message.cancel)
                # An engine that is closed has ended the request already.
                with contextlib.suppress(RuntimeError):
                    self._engine.cancel(message.cancel)
            return
        request = message.generate
        if request.json_schema or request.tool_choice == generation_pb2.TOOL_CHOICE_REQUIRED:
            with self._lock:
                self._in_preparation.add(request.request_id)
            self._preparers.submit(self._prepare, request)
        else:
            with self._failing(request.request_id):
                self._submit(request, engine_request(request, self._base))

    def _prepare(self, request: pb.GenerateRequest) -> None:
        with self._failing(request.request_id):
            wanted = engine_request(request, self._base)
            constraint = constraint_of(request, self._base.tokenizer, self._compiler())
            with self._lock:
                if request.request_id in self._in_preparation:
                    self._submit(request, dataclasses.replace(wanted, constraint=constraint))

    def _submit(self, request: pb.GenerateRequest, wanted: EngineRequest) -> None:
        submitted = self._engine.submit(wanted, self._sink(request))
        submitted.add_done_callback(lambda done: self._refused(request.request_id, done))

    def _refused(self, request_id: str, submitted: Future[None]) -> None:
        if (error := submitted.exception()) is not None:
            self._writer.fail(request_id, _as_told(error))

    def _sink(self, request: pb.GenerateRequest) -> Callable[[Event], None]:
        request_id, base, writer = request.request_id, self._base, self._writer
        calls = request.tools and request.tool_choice != generation_pb2.TOOL_CHOICE_NONE
        reader = ToolCallReader(base.tokenizer, request.tools) if calls else None

        def tell(event: Event) -> None:
            response = engine_response(event, base)
            for made in with_calls(response, reader) if reader is not None else (response,):
                writer.add(request_id, made)

        def sink(event: Event) -> None:
            # On the engine's thread: what is wrong with one row must not become a failed step of all.
            try:
                tell(event)
            except Exception as error:
                writer.fail(request_id, error)
                self._engine.cancel(request_id)

        return sink

    @contextlib.contextmanager
    def _failing(self, request_id: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._writer.fail(request_id, error)
        finally:
            with self._lock:
                self._in_preparation.discard(request_id)


def _as_told(error: BaseException) -> BaseException:
    """An error of the engine as an error of ours."""
    from optiq_core.engine.types import NotLoadedError, QueueFullError, TooLargeError

    if isinstance(error, NotLoadedError):
        return errors.RefusedError(str(error), reason="ADAPTER_NOT_LOADED")
    if isinstance(error, TooLargeError):
        return errors.RefusedError(str(error), reason="KV_CACHE_TOO_SMALL")
    if isinstance(error, QueueFullError):
        return errors.QueueFullError("engine", str(error))
    return error
