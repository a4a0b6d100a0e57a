"""Continuous batching on mlx-lm's `BatchGenerator`, with a different adapter in every row.

One thread owns the model. Between two decode steps it takes what other threads asked for (new requests, cancellations,
adapters to publish or to free), moves requests from the queue into the batch, and hands out the step's tokens.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, make_stop_sequences
from mlx_lm.models.cache import make_prompt_cache

from ..adapters.bank import BASE, AdapterBank, compute_dtype
from ..adapters.format import read_manifest, validate_against_base
from ..adapters.tensors import load_tensors
from ..base.loader import LoadedBase
from .probe import parity_probe
from .rows import MixedAdapterModel, RowAdapters
from .sampling import make_sampler
from .text import TextStream
from .types import (
    EngineRequest,
    EngineStatus,
    Event,
    Failed,
    Finished,
    InUseError,
    NotLoadedError,
    Queued,
    QueueFullError,
    Reason,
    Sink,
    Started,
    Tokens,
)

log = logging.getLogger(__name__)
T = TypeVar("T")
_RATE_WINDOW_S = 5.0
# Below this a rate is noise.
_SHORTEST_SPAN_S = 0.2


@dataclass(eq=False)
class _Row:
    request: EngineRequest
    sink: Sink
    text: TextStream
    admitted: float
    prefill_began: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    completion_tokens: int = 0
    max_rows: int = 0
    max_adapters: int = 0
    steps: int = 0
    cancelled: bool = False


class Engine:
    """Serves one base with any number of loaded adapters.

    Args:
        base: a loaded base; its modules are wrapped as adapters first touch them.
        max_batch: rows that decode together at most.
        max_queue: requests that may wait.
        prefill_chunk: prompt tokens of a row that are processed between two decode steps.

    Raises:
        ParityError: the device computes mixed batches wrongly.
    """

    def __init__(
        self, base: LoadedBase, *, max_batch: int = 16, max_queue: int = 256, prefill_chunk: int = 512
    ) -> None:
        self._base = base
        self._dtype = compute_dtype(base.model)
        parity_probe(self._dtype)
        self.bank = AdapterBank(base.model, self._dtype)
        # Taken before any module is wrapped: what adapters are validated against.
        self.modules = self.bank.modules
        self._max_batch, self._max_queue, self._prefill_chunk = max_batch, max_queue, prefill_chunk
        self._stops = make_stop_sequences(base.tokenizer)
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: deque[_Row] = deque()
        self._rows: dict[int, _Row] = {}
        self._users: dict[str, int] = {}
        self._rate: deque[tuple[float, int]] = deque()
        self._generated = 0
        self._max_adapters = 0
        self._closed = False
        self._submit_lock = threading.Lock()
        self._kv_bytes = self._adapter_bytes = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread; requests that are still running fail."""
        with self._submit_lock:
            self._closed = True
        self._calls.put(None)
        self._thread.join()

    def submit(self, request: EngineRequest, sink: Sink) -> Future[None]:
        """Queue a request; its events go to ``sink`` on the engine's thread, the last is Finished or Failed.

        Returns:
            Done once the request is queued, between two steps. Holds QueueFullError if ``max_queue`` requests wait
            already, NotLoadedError if the adapter is not loaded. Cancelling it in time withdraws the request.
        """
        return self._call(lambda: self._enqueue(request, sink))

    def cancel(self, request_id: str) -> None:
        """End a request at the next step; unknown ids are ignored."""
        self._call(lambda: self._cancel(request_id))

    def load_adapter(self, digest: str, folder: Path) -> int:
        """Load an adapter folder; returns once rows can use it. Reading happens on the caller's thread.

        Returns:
            Bytes of the adapter's tensors in the bank.

        Raises:
            AdapterError: the folder cannot be served on this base.
        """
        if digest not in self.bank:
            manifest = read_manifest(folder)
            validate_against_base(manifest, self.modules)
            tensors = load_tensors(folder, manifest, self.bank.linears, self._dtype)
            self._call(lambda: self.bank.load(digest, tensors)).result()
        return self.bank.bytes_of(digest)

    def unload_adapter(self, digest: str) -> None:
        """Free an adapter's slot; unknown digests are ignored.

        Raises:
            InUseError: requests still use it.
        """

        def unload() -> None:
            if self._users.get(digest):
                raise InUseError(f"{self._users[digest]} requests use adapter {digest}")
            self.bank.unload(digest)

        self._call(unload).result()

    def status(self) -> EngineStatus:
        """Return a snapshot; never waits for a step that is running."""
        now = time.perf_counter()
        recent = [(at, n) for at, n in list(self._rate) if at >= now - _RATE_WINDOW_S]
        span = now - recent[0][0] if recent else 0.0
        return EngineStatus(
            active_rows=len(self._rows),
            queued_requests=len(self._waiting),
            resident_adapters=len(self.bank),
            adapter_bytes=self._adapter_bytes,
            kv_cache_bytes=self._kv_bytes,
            active_memory_bytes=mx.get_active_memory(),
            peak_memory_bytes=mx.get_peak_memory(),
            tokens_per_second=sum(n for _, n in recent) / span if span > _SHORTEST_SPAN_S else 0.0,
            generated_tokens=self._generated,
            max_adapters_in_one_step=self._max_adapters,
        )

    def _call(self, function: Callable[[], T]) -> Future[T]:
        """Run a function on the engine's thread, between two steps."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        with self._submit_lock:
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._calls.put(run)
        return future

    # What follows runs on the engine's thread.

    def _run(self) -> None:
        generator = self._new_generator()
        while self._take_calls(block=not self._rows and not self._waiting):
            try:
                self._admit(generator)
                if self._rows:
                    self._step(generator)
            except Exception:
                log.exception("a step failed; its %d requests end", len(self._rows))
                self._fail_rows("the engine failed in a step; try again")
                generator.close()
                generator = self._new_generator()
            self._kv_bytes, self._adapter_bytes = generator.prompt_cache_nbytes, self.bank.nbytes
        self._fail_rows("the engine is shutting down")
        generator.close()
        # Streams belong to their thread and must end before it does.
        mx.synchronize()
        mx.clear_streams()

    def _new_generator(self) -> BatchGenerator:
        # The stream belongs to the thread that makes it.
        return BatchGenerator(
            MixedAdapterModel(self._base.model, self.bank),
            completion_batch_size=self._max_batch,
            prefill_batch_size=self._max_batch,
            prefill_step_size=self._prefill_chunk,
            stream=mx.default_stream(mx.default_device()),
        )

    def _take_calls(self, *, block: bool) -> bool:
        """Run what other threads asked for; False once the engine is to end."""
        while True:
            try:
                call = self._calls.get(block=block)
            except queue.Empty:
                return True
            if call is None:
                return False
            call()
            block = False

    def _enqueue(self, request: EngineRequest, sink: Sink) -> None:
        if request.adapter and request.adapter not in self.bank:
            raise NotLoadedError(f"adapter {request.adapter} is not loaded")
        free = self._max_batch - len(self._rows) - len(self._waiting)
        if free <= 0 and len(self._waiting) >= self._max_queue:
            raise QueueFullError(f"{len(self._waiting)} requests wait already")
        if request.adapter:
            self._users[request.adapter] = self._users.get(request.adapter, 0) + 1
        row = _Row(request, sink, TextStream(self._base.tokenizer, request.stop), time.perf_counter())
        self._waiting.append(row)
        if free <= 0:
            sink(Queued(len(self._waiting)))

    def _cancel(self, request_id: str) -> None:
        for row in itertools.chain(self._waiting, self._rows.values()):
            if row.request.request_id == request_id:
                row.cancelled = True

    def _admit(self, generator: BatchGenerator) -> None:
        """Drop what was cancelled and fill the batch from the queue."""
        gone = [uid for uid, row in self._rows.items() if row.cancelled]
        if gone:
            generator.remove(gone)
            for uid in gone:
                self._finish(uid, Reason.CANCELLED)
        waiting = len(self._waiting)
        for row in [row for row in self._waiting if row.cancelled]:
            self._waiting.remove(row)
            self._release(row)
            row.sink(self._finished(row, Reason.CANCELLED))
        while self._waiting and len(self._rows) < self._max_batch:
            self._insert(generator, self._waiting.popleft())
        if len(self._waiting) != waiting:
            for position, row in enumerate(self._waiting, 1):
                row.sink(Queued(position))

    def _insert(self, generator: BatchGenerator, row: _Row) -> None:
        request = row.request
        handle = self.bank.handle(request.adapter) if request.adapter else BASE
        cache: list[Any] = make_prompt_cache(self._base.model)
        cache.append(RowAdapters(self.bank, [handle], [request.factor]))
        (uid,) = generator.insert(
            [list(request.prompt)],
            max_tokens=[request.max_tokens],
            caches=[cache],
            samplers=[make_sampler(request.sampling)],
            stop_sequences=[self._stops],
        )
        row.prefill_began = time.perf_counter()
        self._rows[uid] = row
        row.sink(Started(len(request.prompt), 0))

    def _step(self, generator: BatchGenerator) -> None:
        _, responses = generator.next()
        if not responses:
            return
        now = time.perf_counter()
        rows = len(responses)
        adapters = len({self._adapter_key(self._rows[r.uid].request) for r in responses})
        self._max_adapters = max(self._max_adapters, adapters)
        self._count(now, rows)
        for response in responses:
            row = self._rows[response.uid]
            row.steps += 1
            row.max_rows = max(row.max_rows, rows)
            row.max_adapters = max(row.max_adapters, adapters)
            self._take_token(generator, response, row, now)

    def _take_token(self, generator: BatchGenerator, response: Any, row: _Row, now: float) -> None:
        """Hand out one row's token and end the row if it is its last."""
        ended_by_model = response.finish_reason == "stop"
        stopped = False
        if not ended_by_model:
            row.first_token = row.first_token or now
            row.last_token = now
            row.completion_tokens += 1
            text, stopped = row.text.push(response.token)
            row.sink(Tokens((response.token,), text))
        if stopped and response.finish_reason is None:
            generator.remove([response.uid])
        if stopped:
            self._finish(response.uid, Reason.STOP_STRING)
        elif response.finish_reason is not None:
            text, stopped = row.text.finish()
            if text:
                row.sink(Tokens((), text))
            reason = Reason.STOP_STRING if stopped else Reason.STOP if ended_by_model else Reason.LENGTH
            self._finish(response.uid, reason)

    def _finish(self, uid: int, reason: Reason) -> None:
        row = self._rows.pop(uid)
        self._release(row)
        row.sink(self._finished(row, reason))

    def _release(self, row: _Row) -> None:
        adapter = row.request.adapter
        if adapter:
            self._users[adapter] -= 1
            if not self._users[adapter]:
                del self._users[adapter]

    def _finished(self, row: _Row, reason: Reason) -> Finished:
        now = time.perf_counter()
        began = row.prefill_began or now
        first = row.first_token or now
        return Finished(
            reason=reason,
            prompt_tokens=len(row.request.prompt),
            completion_tokens=row.completion_tokens,
            cached_tokens=0,
            queue_ms=(began - row.admitted) * 1e3,
            prefill_ms=(first - began) * 1e3,
            first_token_ms=(first - row.admitted) * 1e3,
            decode_ms=max(row.last_token - first, 0.0) * 1e3,
            max_rows=row.max_rows,
            max_adapters=row.max_adapters,
            steps=row.steps,
        )

    def _fail_rows(self, message: str) -> None:
        event: Event = Failed(message)
        for row in [*self._rows.values(), *self._waiting]:
            self._release(row)
            row.sink(event)
        self._rows.clear()
        self._waiting.clear()

    @staticmethod
    def _adapter_key(request: EngineRequest) -> str:
        return request.adapter if request.factor else ""

    def _count(self, now: float, tokens: int) -> None:
        self._generated += tokens
        self._rate.append((now, tokens))
        while self._rate and self._rate[0][0] < now - _RATE_WINDOW_S:
            self._rate.popleft()
