"""Prometheus metrics: requests by tenant and adapter, and the state of engine and jobs when the page is read."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from optiq_daemon.observers import Ended
from optiq_protos.v1 import runtime_pb2

# Names come and go; series stay until the daemon ends, so there must be a last one.
MAX_PAIRS = 2000
OTHER = "(other)"
BASE = "(base)"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_BY_NAME = ("tenant", "adapter")


class Metrics:
    """Counts requests and renders the page."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._state = _State()
        registry.register(self._state)
        self._pairs: set[tuple[str, str]] = set()
        self._requests = Counter(
            "optiq_requests", "Requests that ended, by gRPC code.", (*_BY_NAME, "code"), registry=registry
        )
        self._prompt = Counter("optiq_prompt_tokens", "Prompt tokens processed.", _BY_NAME, registry=registry)
        self._cached = Counter(
            "optiq_cached_prompt_tokens", "Prompt tokens that came from the prefix cache.", _BY_NAME, registry=registry
        )
        self._completion = Counter("optiq_completion_tokens", "Tokens generated.", _BY_NAME, registry=registry)
        self._first = Histogram(
            "optiq_time_to_first_token_seconds",
            "Arrival to first token.",
            _BY_NAME,
            buckets=_SECONDS,
            registry=registry,
        )
        self._duration = Histogram(
            "optiq_request_duration_seconds", "Arrival to end.", _BY_NAME, buckets=_SECONDS, registry=registry
        )

    def ended(self, request: Ended) -> None:
        """Count a request that has ended."""
        pair = self._pair(request.tenant, request.adapter)
        self._requests.labels(*pair, request.code).inc()
        self._prompt.labels(*pair).inc(request.prompt_tokens)
        self._cached.labels(*pair).inc(request.cached_tokens)
        self._completion.labels(*pair).inc(request.completion_tokens)
        self._duration.labels(*pair).observe(request.seconds)
        if request.first_token_ms:
            self._first.labels(*pair).observe(request.first_token_ms / 1000)

    def page(self, status: runtime_pb2.RuntimeStatus) -> tuple[bytes, str]:
        """The page and its media type."""
        self._state.status = status
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def _pair(self, tenant: str, adapter: str) -> tuple[str, str]:
        pair = (tenant, adapter or BASE)
        if pair not in self._pairs:
            if len(self._pairs) >= MAX_PAIRS:
                return (OTHER, OTHER)
            self._pairs.add(pair)
        return pair


class _State(Collector):
    """Gauges of the daemon's status."""

    def __init__(self) -> None:
        self.status = runtime_pb2.RuntimeStatus()

    def collect(self) -> Iterator[Metric]:
        """One gauge for each figure."""
        status, engine = self.status, self.status.engine
        serving = engine.state == runtime_pb2.ENGINE_STATE_SERVING
        for name, text, value in (
            ("optiq_engine_up", "1 while the engine serves.", serving),
            ("optiq_engine_restarts", "Engine processes that ended and were replaced.", engine.restarts),
            ("optiq_active_rows", "Requests in the batch.", engine.active_rows),
            ("optiq_queued_requests", "Requests that wait for a place in the batch.", engine.queued_requests),
            ("optiq_live_requests", "Requests that are admitted.", len(status.requests)),
            ("optiq_tokens_per_second", "Tokens generated in the last seconds.", engine.tokens_per_second),
            ("optiq_resident_adapters", "Adapters in the engine.", engine.resident_adapters),
            ("optiq_adapters", "Adapters that are installed.", status.adapter_count),
            ("optiq_quarantined_adapters", "Folders that cannot be served.", status.quarantined_adapter_count),
            ("optiq_adapter_bytes", "Bytes of adapters in the engine.", engine.adapter_bytes),
            ("optiq_kv_cache_bytes", "Bytes of KV caches in the engine.", engine.kv_cache_bytes),
            ("optiq_base_bytes", "Bytes of the base's weights.", status.base.memory_bytes),
            ("optiq_process_memory_bytes", "Resident bytes of all processes.", status.process_memory_bytes),
            ("optiq_memory_limit_bytes", "Bytes that the machine or its cgroup has.", status.memory_limit_bytes),
            ("optiq_queued_jobs", "Training jobs that wait.", status.queued_jobs),
            ("optiq_running_jobs", "Training jobs that run.", len(status.running_jobs)),
        ):
            yield GaugeMetricFamily(name, text, value=float(value))
