"""Traces of requests and of adapter loads, for OpenTelemetry. Needs the `otel` extra, and is off without an endpoint.

A request's spans are made when it has ended, from the times that it was measured with, so that tracing costs nothing
while tokens are streamed: ``generate`` with ``queue``, ``prefill`` and ``decode`` inside. Where an adapter has to be
loaded first, that is part of ``queue``, and ``load adapter`` is a span of its own, since loads are shared by requests.
"""

from __future__ import annotations

from typing import Any

from optiq_daemon.config import ConfigError
from optiq_daemon.observers import Ended

_NS = 1_000_000_000


class Tracing:
    """Sends spans to an OTLP endpoint over HTTP.

    Args:
        endpoint: such as `http://127.0.0.1:4318/v1/traces`.
        exporter: takes the spans instead, if given.

    Raises:
        ConfigError: the `otel` extra is not installed.
    """

    def __init__(self, endpoint: str, *, version: str, exporter: Any = None) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise ConfigError(
                f"trace_endpoint {endpoint!r}: traces need OpenTelemetry: pip install 'optiq[otel]'"
            ) from None
        resource = Resource.create({"service.name": "optiq", "service.version": version})
        # A provider of our own: the daemon must not change what else in the process traces.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter(endpoint)))
        self._tracer = self._provider.get_tracer("optiq")

    def ended(self, request: Ended) -> None:
        """Make the spans of a request that has ended."""
        from opentelemetry.trace import set_span_in_context
        from opentelemetry.trace.status import Status, StatusCode

        began = int(request.began * _NS)
        root = self._tracer.start_span("generate", start_time=began, attributes=_attributes(request))
        if request.code not in ("OK", "CANCELLED"):
            root.set_status(Status(StatusCode.ERROR, request.code))
        inside, at = set_span_in_context(root), began
        for name, milliseconds in (
            ("queue", request.queue_ms),
            ("prefill", request.prefill_ms),
            ("decode", request.decode_ms),
        ):
            if milliseconds > 0:
                until = at + int(milliseconds * 1e6)
                self._tracer.start_span(name, context=inside, start_time=at).end(until)
                at = until
        root.end(began + int(request.seconds * _NS))

    def loaded(self, digest: str, began: float, seconds: float) -> None:
        """Make the span of an adapter that was loaded.

        Args:
            began: seconds since the epoch.
        """
        start = int(began * _NS)
        attributes = {"optiq.adapter.digest": digest}
        self._tracer.start_span("load adapter", start_time=start, attributes=attributes).end(start + int(seconds * _NS))

    def close(self) -> None:
        """Send what is left; waits for the endpoint for a few seconds at most."""
        self._provider.shutdown()


def _attributes(request: Ended) -> dict[str, str | int | float]:
    return {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.usage.input_tokens": request.prompt_tokens,
        "gen_ai.usage.output_tokens": request.completion_tokens,
        "optiq.request_id": request.request_id,
        "optiq.tenant": request.tenant,
        "optiq.adapter": request.adapter,
        "optiq.adapter.digest": request.digest,
        "optiq.cached_tokens": request.cached_tokens,
        "optiq.code": request.code,
    }
