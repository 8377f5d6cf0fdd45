"""Spans of requests."""

from __future__ import annotations

import sys

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from deployments.engines.tracing import Tracing
from entmtp.errors import EntMTPError


def test_a_request_is_a_span_with_its_facts() -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing(1.0, exporter)
    tracing.record("m", 1.5, 200, {"new_tokens": 7, "key": "alice", "finish_reasons": ["stop"]})
    tracing.record("m", 0.1, 503, {})
    tracing.close()
    good, bad = exporter.get_finished_spans()
    assert good.name == "m"
    assert good.attributes is not None
    assert dict(good.attributes) == {"http.response.status_code": 200, "entmtp.new_tokens": 7, "entmtp.key": "alice"}
    assert good.end_time is not None
    assert good.start_time is not None
    assert good.end_time - good.start_time == 1_500_000_000
    assert bad.status.status_code is StatusCode.ERROR


def test_nothing_is_sent_where_nothing_is_wanted() -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing(0.0, exporter)
    tracing.record("m", 1.5, 200, {})
    tracing.close()
    assert exporter.get_finished_spans() == ()


def test_a_missing_exporter_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(EntMTPError, match="trace_share"):
        Tracing(0.5)
