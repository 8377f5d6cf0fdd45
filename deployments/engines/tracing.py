"""A share of the requests as OpenTelemetry spans, for MLflow or any other collector of them; none by default.

Where they go is said by OpenTelemetry's own variables: `OTEL_EXPORTER_OTLP_ENDPOINT`, and for MLflow
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

_LEAST_ERROR = 500


class Tracing:
    """Sends what requests have done."""

    def __init__(self, share: float, exporter: SpanExporter | None = None) -> None:
        """``share`` of the requests, chosen by chance; ``exporter`` None is OTLP over HTTP.

        Raises:
            EntMTPError: some are wanted but the exporter is not installed.
        """
        self._provider: TracerProvider | None = None
        if share:
            resource = Resource.create({"service.name": "entmtp"})
            self._provider = TracerProvider(sampler=TraceIdRatioBased(share), resource=resource, shutdown_on_exit=True)
            self._provider.add_span_processor(BatchSpanProcessor(exporter or _otlp()))

    def ended(self, name: str, seconds: float, status: int, facts: Mapping[str, Any]) -> None:
        """A request of ``name`` that took so long has just ended with this HTTP status."""
        if self._provider is None:
            return
        now = time.time_ns()
        span = self._provider.get_tracer("entmtp").start_span(name, start_time=now - int(seconds * 1e9))
        span.set_attribute("http.response.status_code", status)
        for key, value in facts.items():
            if isinstance(value, str | int | float):
                span.set_attribute(f"entmtp.{key}", value)
        if status >= _LEAST_ERROR:
            span.set_status(Status(StatusCode.ERROR))
        span.end(now)

    def close(self) -> None:
        """Sends what was not sent yet."""
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
