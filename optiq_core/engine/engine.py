"""Continuous batching on mlx-lm's batches, with a different adapter in every row.

One thread owns the model. Between two decode steps it takes what other threads asked for (new requests, cancellations,
adapters to publish or to free), moves requests from the queue into the batch, and hands out the step's tokens.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TypeVar

import mlx.core as mx
from mlx_lm.generate import make_stop_sequences
from mlx_lm.models.cache import make_prompt_cache

from ..adapters.bank import AdapterBank, compute_dtype
from ..adapters.format import read_manifest, validate_against_base
from ..adapters.merge_dora import merge_dora
from ..adapters.tensors import load_tensors
from ..base.loader import LoadedBase
from .adapter_probe import probe_adapters
from .admission import Admission
from .batch import Batch, CacheFactory, Drawn
from .cpu import prepare_for_cpu
from .leases import AdapterLeases
from .memory import chunk_limit, kv_budget, row_cost
from .meter import TokenMeter
from .pace import Pace
from .prefix import PrefixCache
from .probe import parity_probe
from .row import Row
from .text import TextStream
from .types import EngineRequest, EngineStatus, Failed, Reason, Sink, Started, TooLargeError

log = logging.getLogger(__name__)
T = TypeVar("T")


class Engine:
    """Serves one base with any number of loaded adapters.

    Args:
        base: a loaded base; its modules are wrapped as adapters first touch them.
        max_batch: rows that decode together at most.
        max_queue: requests that may wait beyond the free places of the batch.
        prefill_chunk: prompt tokens that are processed at once at most; fewer while rows decode.
        kv_cache_bytes: for the KV caches of all rows; rows wait until theirs fit at full length. None for half of the
            memory that is left.
        prefix_cache_bytes: for the KV caches of earlier prompts; 0 for none.
        told: called on the engine's thread when sinks have been told all that a step brought; must not raise.
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
        kv_cache_bytes: int | None = None,
        prefix_cache_bytes: int = 0,
        new_cache: CacheFactory = make_prompt_cache,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        self._base, self._told = base, told
        self._dtype = compute_dtype(base.model)
        parity_probe(self._dtype)
        if base.profile.dense:
            prepare_for_cpu(base.model)
        self.bank = AdapterBank(base.model, self._dtype)
        # Taken before any module is wrapped: what adapters are validated against.
        self.modules = self.bank.modules
        self._max_batch, self._new_cache = max_batch, new_cache
        self._kv_budget = kv_budget() if kv_cache_bytes is None else kv_cache_bytes
        self._row_cost = row_cost(base.model, new_cache)
        heads = int(base.config.get("num_attention_heads") or 0)
        self._pace = Pace(chunk_limit(prefill_chunk, heads=heads, context=base.max_context, budget=self._kv_budget))
        self._prefixes = PrefixCache(prefix_cache_bytes)
        self._stops = make_stop_sequences(base.tokenizer)
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting = Admission(max_queue)
        self._batch: Batch | None = None
        self._leases = AdapterLeases(self.bank)
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
            already, NotLoadedError if an adapter is not loaded, TooLargeError if it would not fit even alone.
            Cancelling it in time withdraws the request.
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

        def resident() -> int | None:
            return self.bank.bytes_of(digest) if digest in self.bank else None

        # Asked and answered between two steps: another thread may unload it at any other time.
        nbytes = self._call(resident).result()
        if nbytes is not None:
            return nbytes
        manifest = read_manifest(folder)
        validate_against_base(manifest, self.modules)
        tensors = load_tensors(folder, manifest, self.bank.targets, self._dtype)

        def publish() -> int:
            self.bank.load(digest, tensors)
            return self.bank.bytes_of(digest)

        return self._call(publish).result()

    def unload_adapter(self, digest: str) -> None:
        """Free an adapter's slot; unknown digests are ignored.

        Raises:
            InUseError: requests still use it.
        """
        self._call(lambda: self._leases.unload(digest)).result()

    def merge_dora(self, parts: Sequence[tuple[Path, float]], target: Path) -> None:
        """Write the weighted sum of adapter folders, DoRA ones among them, as one; on the caller's thread.

        Raises:
            AdapterError: as :func:`optiq_core.adapters.merge_dora.merge_dora` does.
        """
        merge_dora(parts, self.bank.targets, target)

    def probe_adapters(self, digests: Sequence[str]) -> dict[str, float]:
        """Compare loaded adapters with the bare base on a fixed prompt, between two steps.

        Returns:
            Largest difference of the logits by digest; see :func:`probe_adapters`.
        """
        return self._call(lambda: probe_adapters(self._base.model, self.bank, digests)).result()

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
            kv_budget_bytes=self._kv_budget,
            prefix_cache_bytes=self._prefixes.nbytes,
            prefix_cache_entries=len(self._prefixes),
            prefix_hits=self._prefixes.hits,
            prefix_hit_tokens=self._prefixes.hit_tokens,
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
            self._told()
            self._kv_bytes, self._adapter_bytes = batch.nbytes, self.bank.nbytes
        self._fail([*batch.rows, *self._waiting.clear()], "the engine is shutting down")
        self._told()
        batch.close()
        # Streams belong to their thread and must end before it does.
        mx.synchronize()
        mx.clear_streams()

    def _new_batch(self) -> Batch:
        return Batch(self._base.model, self.bank, self._new_cache, self._stops, self._prefixes)

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
        needed = self._row_cost.rows([request.length])
        if needed > self._kv_budget:
            raise TooLargeError(
                f"{request.length} tokens of prompt and answer would take {needed / 1e6:.0f} MB of KV cache, and there "
                f"are {self._kv_budget / 1e6:.0f} MB; send a shorter prompt or ask for fewer tokens"
            )
        self._waiting.check(self._max_batch - self._running)
        row = Row(request, sink, TextStream(self._base.tokenizer, request.stop))
        self._leases.take(row)
        self._waiting.add(row)

    def _cancel(self, request_id: str) -> None:
        self._waiting.cancel(request_id)
        for row in self._batch.rows if self._batch is not None else ():
            if row.request.request_id == request_id:
                row.cancelled = True

    def _admit(self, batch: Batch) -> None:
        """Drop what was cancelled and fill the batch from the queue."""
        cancelled = [row for row in batch.rows if row.cancelled]
        batch.remove(cancelled)
        for row in [*cancelled, *self._waiting.drop_cancelled()]:
            self._finish(row, Reason.CANCELLED)

        def fits(row: Row) -> bool:
            lengths = [other.request.length for other in [*batch.rows, row]]
            return len(lengths) <= self._max_batch and self._row_cost.rows(lengths) <= self._kv_budget

        while (arrived := self._waiting.take(fits)) is not None:
            try:
                batch.insert(arrived, *self._leases.place(arrived))
            except Exception:
                log.exception("a request's adapters have no place")
                self._fail([arrived], "the engine could not place the request's adapters; try again")
        self._waiting.tell_positions()

    def _step(self, batch: Batch) -> None:
        began = time.perf_counter()
        decoding = batch.decoding
        drawn = batch.decode()
        if drawn:
            self._hand_out(batch, drawn)
            self._told()
            batch.keep_ended()
        spent = batch.prefill(partial(self._pace.chunk, decoding=decoding), self._begun)
        seconds = time.perf_counter() - began
        self._pace.observe(seconds, prompt_tokens=spent.tokens, context=spent.context, decoding=decoding)

    def _begun(self, row: Row) -> None:
        row.prefill_began = time.perf_counter()
        row.sink(Started(len(row.prompt), row.cached_tokens))
        self._told()

    def _hand_out(self, batch: Batch, drawn: list[Drawn]) -> None:
        now = time.perf_counter()
        adapters = len({one.row.adapters for one in drawn})
        self._max_adapters = max(self._max_adapters, adapters)
        self._meter.count(now, len(drawn))
        for row, token, finish_reason, logprobs in drawn:
            row.shared_step(len(drawn), adapters)
            reason = row.take(token, finish_reason, now, logprobs)
            if reason is None and row.request.constraint is not None and row.request.constraint.error:
                batch.remove([row])
                self._fail([row], "the answer cannot be held to its schema any further: it is too complex")
                continue
            if reason is not None:
                if finish_reason is None:
                    batch.remember(row)
                batch.remove([row])
                self._finish(row, reason)

    def _finish(self, row: Row, reason: Reason) -> None:
        self._leases.release(row)
        row.finish(reason)

    def _fail(self, rows: Iterable[Row], message: str) -> None:
        for row in rows:
            self._leases.release(row)
            row.sink(Failed(message))

    @property
    def _running(self) -> int:
        return len(self._batch) if self._batch is not None else 0
