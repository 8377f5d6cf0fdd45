"""Export of a share of the requests as OpenTelemetry spans, for MLflow or any other collector; off by default.

OpenTelemetry's own environment variables set the destination: `OTEL_EXPORTER_OTLP_ENDPOINT`, and for MLflow
`OTEL_EXPORTER_OTLP_HEADERS=x-mlflow-experiment-id=…`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.trace import Status, StatusCode

from entmtp.errors import EntMTPError

_SERVER_ERROR = 500


class Tracing:
    """Exports one span for each sampled request."""

    def __init__(self, share: float, exporter: SpanExporter | None = None) -> None:
        """Set up the export of a random ``share`` of the requests; without ``exporter`` by OTLP over HTTP.

        Raises:
            EntMTPError: the share is not zero but the exporter is not installed.
        """
        self._provider: TracerProvider | None = None
        if share:
            resource = Resource.create({"service.name": "entmtp"})
            self._provider = TracerProvider(sampler=TraceIdRatioBased(share), resource=resource, shutdown_on_exit=True)
            self._provider.add_span_processor(BatchSpanProcessor(exporter or _otlp()))

    def record(self, name: str, seconds: float, status: int, attributes: Mapping[str, Any]) -> None:
        """Record a request that has just ended.

        Args:
            name: name of the span.
            seconds: duration of the request.
            status: HTTP status of the response.
            attributes: further attributes; only text and numbers are exported.
        """
        if self._provider is None:
            return
        now = time.time_ns()
        span = self._provider.get_tracer("entmtp").start_span(name, start_time=now - int(seconds * 1e9))
        span.set_attribute("http.response.status_code", status)
        for key, value in attributes.items():
            if isinstance(value, str | int | float):
                span.set_attribute(f"entmtp.{key}", value)
        if status >= _SERVER_ERROR:
            span.set_status(Status(StatusCode.ERROR))
        span.end(now)

    def close(self) -> None:
        """Send the remaining spans and stop."""
        if self._provider is not None:
            self._provider.shutdown()


def _otlp() -> SpanExporter:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise EntMTPError(
            "trace_share: traces need the package opentelemetry-exporter-otlp-proto-http; install it, or give 0"
        ) from error
    return OTLPSpanExporter()
