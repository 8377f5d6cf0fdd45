"""Prometheus metrics of the engines, recorded through Ray; names are vLLM's where the meaning is the same.

Every node of a cluster exports them next to Ray's own metrics, with the prefix `ray_`. `/metrics` of the service
collects them from all nodes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import get_args

from ray.util.metrics import Counter, Gauge, Histogram

from deployments.engines.metric_definition import PREFIX, REFUSED, MetricDefinition
from deployments.ray_internals import record_zero
from entmtp.decoding.outputs import EngineStatistics, FinishReason, RequestOutput, RequestStats

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_OLD_PREDICTED_GOODPUT = "goodput_foretold_tokens_per_second"
"""Exported for one more release: dashboards of users may still read it."""

_TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)


ENGINE_METRICS = (
    MetricDefinition("counter", "spec_decode_num_drafts", "steps that verified a tree"),
    MetricDefinition("counter", "spec_decode_num_draft_tokens", "tree nodes that were verified"),
    MetricDefinition("counter", "spec_decode_num_accepted_tokens", "tree nodes that were accepted"),
    MetricDefinition(
        "counter",
        "spec_decode_num_accepted_tokens_per_pos",
        "steps that accepted a node at this depth, from 0",
        "position",
        ("0",),
    ),
    MetricDefinition("counter", "steps", "steps of requests, by the nodes of their tree", "nodes", ("0",)),
    MetricDefinition("counter", "prompt_tokens", "prompt tokens of finished requests"),
    MetricDefinition("counter", "prefix_cache_hits", "prompt tokens that lay in the cache already"),
    MetricDefinition("counter", "generation_tokens", "new tokens"),
    MetricDefinition("counter", "request_success", "finished requests", "finished_reason", get_args(FinishReason)),
    MetricDefinition("histogram", "time_to_first_token_seconds", "from the replica's sight", boundaries=_SECONDS),
    MetricDefinition("histogram", "time_per_output_token_seconds", "after the first", boundaries=_TOKEN_SECONDS),
    MetricDefinition(
        "histogram", "inter_token_latency_seconds", "between two outputs of a request", boundaries=_TOKEN_SECONDS
    ),
    MetricDefinition("histogram", "e2e_request_latency_seconds", "from the replica's sight", boundaries=_SECONDS),
    MetricDefinition("histogram", "request_queue_time_seconds", "until a slot was free", boundaries=_SECONDS),
    MetricDefinition("gauge", "num_requests_running", "requests in slots"),
    MetricDefinition("gauge", "num_requests_waiting", "requests without a slot"),
    MetricDefinition("gauge", "outstanding_tokens", "tokens that these may still take"),
    MetricDefinition("gauge", "kv_cache_usage_perc", "share of the cache that running requests use, 0 to 1"),
    MetricDefinition("gauge", "goodput_tokens_per_second", "of the last steps"),
    MetricDefinition("gauge", "predicted_goodput_tokens_per_second", "what the policy expected of the last step"),
    MetricDefinition("gauge", _OLD_PREDICTED_GOODPUT, "old name of predicted_goodput_tokens_per_second"),
)


class EngineMetrics:
    """Metrics of one replica of an engine; counters and gauges are exported from the start."""

    def __init__(self, engine: str) -> None:
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for one in ENGINE_METRICS:
            name, keys = PREFIX + one.name, ("engine", *([one.label] if one.label else []))
            made: Counter | Gauge | Histogram
            if one.kind == "counter":
                made = self._counters[one.name] = Counter(name, one.description, tag_keys=keys)
            elif one.kind == "gauge":
                made = self._gauges[one.name] = Gauge(name, one.description, tag_keys=keys)
            else:
                made = self._histograms[one.name] = Histogram(
                    name, one.description, list(one.boundaries), tag_keys=keys
                )
            made.set_default_tags({"engine": engine})
            if isinstance(made, Counter):
                for labels in one.labels:
                    record_zero(made, labels)

    def start_request(self, prompt_tokens: int) -> RequestRecorder:
        """Recorder of a request that has just arrived."""
        return RequestRecorder(self, prompt_tokens)

    def increase(self, name: str, count: int, **labels: str) -> None:
        """Add to a counter."""
        if count:
            self._counters[name].inc(count, tags=labels)

    def observe(self, name: str, seconds: float) -> None:
        """Add to a histogram."""
        self._histograms[name].observe(seconds)

    def set_gauges(self, statistics: EngineStatistics) -> None:
        """Set all gauges from the engine's statistics."""
        predicted_goodput = 1e3 * (statistics.predicted_goodput or 0.0)
        for name, value in (
            ("num_requests_running", statistics.running),
            ("num_requests_waiting", statistics.waiting),
            ("outstanding_tokens", statistics.outstanding_tokens),
            ("kv_cache_usage_perc", statistics.cache_tokens / max(1, statistics.cache_capacity)),
            ("goodput_tokens_per_second", 1e3 * statistics.goodput),
            ("predicted_goodput_tokens_per_second", predicted_goodput),
            (_OLD_PREDICTED_GOODPUT, predicted_goodput),
        ):
            self._gauges[name].set(value)


class RequestRecorder:
    """Records one request in its engine's metrics."""

    def __init__(self, metrics: EngineMetrics, prompt_tokens: int) -> None:
        self._metrics, self._prompt_tokens = metrics, prompt_tokens
        self._arrived = time.perf_counter()
        self._last_seconds = 0.0
        self._tokens = 0

    def progress(self, output: RequestOutput) -> None:
        """Record the tokens of a step, and the request's end."""
        seconds = time.perf_counter() - self._arrived
        if output.tokens:
            self._metrics.increase("generation_tokens", len(output.tokens))
            if not self._tokens:
                self._metrics.observe("time_to_first_token_seconds", seconds)
            else:
                self._metrics.observe("inter_token_latency_seconds", seconds - self._last_seconds)
            self._last_seconds = seconds
            self._tokens += len(output.tokens)
        if output.finish_reason and output.stats is not None:
            self._finished(output.stats, output.finish_reason, seconds)

    def _finished(self, stats: RequestStats, reason: str, seconds: float) -> None:
        metrics = self._metrics
        metrics.increase("request_success", 1, finished_reason=reason)
        metrics.observe("e2e_request_latency_seconds", seconds)
        metrics.observe("request_queue_time_seconds", stats.waiting_ms / 1e3)
        metrics.increase("prompt_tokens", self._prompt_tokens)
        metrics.increase("prefix_cache_hits", stats.reused_tokens)
        if self._tokens > 1:
            metrics.observe("time_per_output_token_seconds", stats.ms_per_token / 1e3)
        metrics.increase("spec_decode_num_drafts", sum(count for nodes, count in stats.tree_counts.items() if nodes))
        metrics.increase("spec_decode_num_draft_tokens", stats.drafted)
        metrics.increase("spec_decode_num_accepted_tokens", stats.accepted)
        for depth, count in enumerate(stats.accepted_by_depth):
            metrics.increase("spec_decode_num_accepted_tokens_per_pos", count, position=str(depth))
        for nodes, count in stats.tree_counts.items():
            metrics.increase("steps", count, nodes=str(nodes))


def zero_lines(engines: Sequence[str], models: Sequence[str]) -> str:
    """All metrics at zero in Prometheus' text format, as Ray would export them."""
    lines: list[str] = []
    for one, key, names in [*((one, "engine", engines) for one in ENGINE_METRICS), (REFUSED, "model", models)]:
        name = f"ray_{PREFIX}{one.name}" + ("_total" if one.kind == "counter" else "")
        lines += [f"# HELP {name} {one.description}", f"# TYPE {name} {one.kind}"]
        for owner in names:
            for labels in one.labels:
                text = ",".join(f'{label}="{value}"' for label, value in ({key: owner} | labels).items())
                lines += _zero_samples(one, name, text)
    return "".join(f"{line}\n" for line in lines)


def _zero_samples(one: MetricDefinition, name: str, labels: str) -> Iterator[str]:
    if one.kind != "histogram":
        yield f"{name}{{{labels}}} 0.0"
        return
    for bound in (*one.boundaries, "+Inf"):
        yield f'{name}_bucket{{{labels},le="{bound}"}} 0.0'
    yield f"{name}_count{{{labels}}} 0.0"
    yield f"{name}_sum{{{labels}}} 0.0"
