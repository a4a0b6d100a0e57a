"""What is told of a request when it has ended. Holds no prompt and no answer."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from google.rpc import code_pb2

from optiq_daemon.errors import RequestError
from optiq_daemon.names import DEFAULT_TENANT
from optiq_protos.v1 import generation_pb2 as pb


@dataclass(frozen=True)
class Ended:
    """One request. Times are since it arrived, `began` is in seconds since the epoch.

    `adapter` is the id that it resolved to, empty for the base and for names that are not there, `owner` whose adapter
    it is. `code` is the name of its gRPC status, CANCELLED if the caller went away.
    """

    request_id: str
    tenant: str
    owner: str
    adapter: str
    digest: str
    code: str
    began: float
    seconds: float
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    first_token_ms: float = 0.0
    decode_ms: float = 0.0
    tokens_per_second: float = 0.0


Observer = Callable[[Ended], None]
Serve = Callable[[pb.GenerateRequest], AsyncGenerator[pb.GenerateResponse, None]]


class Observed:
    """The path of requests, with those who are told how each ended.

    Args:
        serve: runs a request; see :class:`optiq_daemon.generations.Generations`.
    """

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._observers: list[Observer] = []

    def observe(self, observer: Observer) -> None:
        """Tell `observer` of every request that ends from now on; it must not raise, nor wait."""
        self._observers.append(observer)

    async def serve(self, request: pb.GenerateRequest) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Stream one completion; close the generator if it is left early, which frees the row at the next step.

        Raises:
            RequestError: before the first response or after any.
        """
        seen = _Seen(request)
        try:
            async with aclosing(self._serve(request)) as responses:
                async for response in responses:
                    seen.take(response)
                    yield response
        except Exception as error:
            seen.code = _code(error)
            raise
        finally:
            ended = seen.ended()
            for observer in self._observers:
                observer(ended)


def _code(error: Exception) -> str:
    """As the error map has it: what is not known is the daemon's own fault."""
    code = error.code if isinstance(error, RequestError) else code_pb2.UNKNOWN
    return code_pb2.Code.Name(code_pb2.INTERNAL if code == code_pb2.UNKNOWN else code)


class _Seen:
    """What the stream of one request has shown."""

    def __init__(self, request: pb.GenerateRequest) -> None:
        self._request = request
        self._began, self._clock = time.time(), time.perf_counter()
        self._started, self._finished = pb.Started(), pb.Finished()
        self._tokens = 0
        # Of a stream that is left before its end.
        self.code = "CANCELLED"

    def take(self, response: pb.GenerateResponse) -> None:
        """Note one response."""
        kind = response.WhichOneof("event")
        if kind == "chunk":
            self._tokens += len(response.chunk.token_ids)
        elif kind == "started":
            self._started = response.started
        elif kind == "finished":
            self._finished, self.code = response.finished, "OK"

    def ended(self) -> Ended:
        """All of it."""
        started, timings = self._started, self._finished.timings
        tenant = self._request.parent.removeprefix("tenants/") or DEFAULT_TENANT
        return Ended(
            request_id=started.request_id or self._request.request_id,
            tenant=tenant,
            owner=started.adapter.split("/")[1] if started.adapter else tenant,
            # Only names that were resolved: what callers make up must not fill logs and series.
            adapter=started.adapter.rpartition("/")[2],
            digest=started.adapter_digest,
            code=self.code,
            began=self._began,
            seconds=time.perf_counter() - self._clock,
            prompt_tokens=started.prompt_tokens,
            cached_tokens=started.cached_tokens,
            completion_tokens=self._tokens,
            queue_ms=timings.queue_ms,
            prefill_ms=timings.prefill_ms,
            first_token_ms=timings.time_to_first_token_ms,
            decode_ms=timings.decode_ms,
            tokens_per_second=timings.tokens_per_second,
        )
