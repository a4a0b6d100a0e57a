"""Continuous batching on mlx-lm's batches, with a different adapter in every row.

One thread owns the model. Between two decode steps it takes what other threads asked for (new requests, cancellations,
adapters to publish or to free), moves requests from the queue into the batch, and hands out the step's tokens.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import mlx.core as mx
from mlx_lm.generate import make_stop_sequences
from mlx_lm.models.cache import make_prompt_cache

from ..adapters.bank import AdapterBank, compute_dtype
from ..adapters.format import read_manifest, validate_against_base
from ..adapters.tensors import load_tensors
from ..base.loader import LoadedBase
from .admission import Admission
from .batch import Batch, CacheFactory
from .meter import TokenMeter
from .probe import parity_probe
from .row import Row
from .text import TextStream
from .types import EngineRequest, EngineStatus, Failed, InUseError, NotLoadedError, Reason, Sink, Started

log = logging.getLogger(__name__)
T = TypeVar("T")


class Engine:
    """Serves one base with any number of loaded adapters.

    Args:
        base: a loaded base; its modules are wrapped as adapters first touch them.
        max_batch: rows that decode together at most.
        max_queue: requests that may wait.
        prefill_chunk: prompt tokens of a row that are processed between two decode steps.
        new_cache: makes the KV caches of one row, one per layer, with mlx-lm's cache interface.

    Raises:
        ParityError: the device computes mixed batches wrongly.
    """

    def __init__(
        self,
        base: LoadedBase,
        *,
        max_batch: int = 16,
        max_queue: int = 256,
        prefill_chunk: int = 512,
        new_cache: CacheFactory = make_prompt_cache,
    ) -> None:
        self._base = base
        self._dtype = compute_dtype(base.model)
        parity_probe(self._dtype)
        self.bank = AdapterBank(base.model, self._dtype)
        # Taken before any module is wrapped: what adapters are validated against.
        self.modules = self.bank.modules
        self._max_batch, self._prefill_chunk, self._new_cache = max_batch, prefill_chunk, new_cache
        self._stops = make_stop_sequences(base.tokenizer)
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting = Admission(max_queue)
        self._batch: Batch | None = None
        self._users: dict[str, int] = {}
        self._meter = TokenMeter()
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
        return EngineStatus(
            active_rows=self._running,
            queued_requests=len(self._waiting),
            resident_adapters=len(self.bank),
            adapter_bytes=self._adapter_bytes,
            kv_cache_bytes=self._kv_bytes,
            active_memory_bytes=mx.get_active_memory(),
            peak_memory_bytes=mx.get_peak_memory(),
            tokens_per_second=self._meter.tokens_per_second,
            generated_tokens=self._meter.total,
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
        batch = self._batch = self._new_batch()
        while self._take_calls(block=not batch and not self._waiting):
            try:
                self._admit(batch)
                if batch:
                    self._step(batch)
            except Exception:
                log.exception("a step failed; its %d requests end", len(batch))
                self._fail([*batch.rows, *self._waiting.clear()], "the engine failed in a step; try again")
                batch.close()
                batch = self._batch = self._new_batch()
            self._kv_bytes, self._adapter_bytes = batch.nbytes, self.bank.nbytes
        self._fail([*batch.rows, *self._waiting.clear()], "the engine is shutting down")
        batch.close()
        # Streams belong to their thread and must end before it does.
        mx.synchronize()
        mx.clear_streams()

    def _new_batch(self) -> Batch:
        return Batch(
            self._base.model,
            self.bank,
            self._new_cache,
            self._stops,
            max_batch=self._max_batch,
            prefill_chunk=self._prefill_chunk,
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
        row = Row(request, sink, TextStream(self._base.tokenizer, request.stop))
        self._waiting.add(row, self._max_batch - self._running)
        if request.adapter:
            self._users[request.adapter] = self._users.get(request.adapter, 0) + 1

    def _cancel(self, request_id: str) -> None:
        self._waiting.cancel(request_id)
        for row in self._batch.rows if self._batch is not None else ():
            if row.request.request_id == request_id:
                row.cancelled = True

    def _admit(self, batch: Batch) -> None:
        """Drop what was cancelled and fill the batch from the queue."""
        cancelled = [row for row in batch.rows if row.cancelled]
        batch.remove(cancelled)
        for row in cancelled:
            self._finish(row, Reason.CANCELLED)
        for row in self._waiting.drop_cancelled():
            self._finish(row, Reason.CANCELLED)
        for row in self._waiting.take(self._max_batch - len(batch)):
            batch.insert(row)
            row.prefill_began = time.perf_counter()
            row.sink(Started(len(row.request.prompt), 0))

    def _step(self, batch: Batch) -> None:
        drawn = batch.step()
        if not drawn:
            return
        now = time.perf_counter()
        adapters = len({row.adapter_key for row, _, _ in drawn})
        self._max_adapters = max(self._max_adapters, adapters)
        self._meter.count(now, len(drawn))
        for row, token, finish_reason in drawn:
            row.shared_step(len(drawn), adapters)
            reason = row.take(token, finish_reason, now)
            if reason is not None:
                batch.remove([row])
                self._finish(row, reason)

    def _finish(self, row: Row, reason: Reason) -> None:
        self._release(row)
        row.finish(reason)

    def _fail(self, rows: Iterable[Row], message: str) -> None:
        for row in rows:
            self._release(row)
            row.sink(Failed(message))

    def _release(self, row: Row) -> None:
        adapter = row.request.adapter
        if adapter:
            self._users[adapter] -= 1
            if not self._users[adapter]:
                del self._users[adapter]

    @property
    def _running(self) -> int:
        return len(self._batch) if self._batch is not None else 0
