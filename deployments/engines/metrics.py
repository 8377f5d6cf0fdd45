"""Prometheus metrics, through Ray's own; the names are vLLM's where the same thing is meant.

Every node of a cluster exports them, with `ray_` in front, where Ray's own metrics are; `/metrics` of the service
gathers them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ray.util.metrics import Counter, Gauge, Histogram

from entmtp.decoding.outputs import Completion, EngineStatistics, FinishReason, RequestOutput

PREFIX = "entmtp_"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_OLD_PREDICTED_GOODPUT = "goodput_foretold_tokens_per_second"
"""Exported for one more release: dashboards of users may still read it."""

_TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Definition:
    """A metric.

    Attributes:
        label: a label besides the engine's name, if it has one; ``values`` of it that are there from the start.
        boundaries: of a histogram's buckets.
    """

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    about: str
    label: str | None = None
    values: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()

    @property
    def labels(self) -> list[dict[str, str]]:
        """Sets of labels that are there from the start."""
        return [{}] if self.label is None else [{self.label: value} for value in self.values]


ENGINE_METRICS = (
    Definition("counter", "spec_decode_num_drafts", "steps that verified a tree"),
    Definition("counter", "spec_decode_num_draft_tokens", "tree nodes that were verified"),
    Definition("counter", "spec_decode_num_accepted_tokens", "tree nodes that were kept"),
    Definition(
        "counter",
        "spec_decode_num_accepted_tokens_per_pos",
        "steps that kept a node at this depth, from 0",
        "position",
        ("0",),
    ),
    Definition("counter", "steps", "steps of requests, by the nodes of their tree", "nodes", ("0",)),
    Definition("counter", "prompt_tokens", "prompt tokens of finished requests"),
    Definition("counter", "prefix_cache_hits", "prompt tokens that lay in the cache already"),
    Definition("counter", "generation_tokens", "new tokens"),
    Definition("counter", "request_success", "finished requests", "finished_reason", get_args(FinishReason)),
    Definition("histogram", "time_to_first_token_seconds", "from the replica's sight", boundaries=_SECONDS),
    Definition("histogram", "time_per_output_token_seconds", "after the first", boundaries=_TOKEN_SECONDS),
    Definition("histogram", "e2e_request_latency_seconds", "from the replica's sight", boundaries=_SECONDS),
    Definition("histogram", "request_queue_time_seconds", "until a slot was free", boundaries=_SECONDS),
    Definition("gauge", "num_requests_running", "requests in slots"),
    Definition("gauge", "num_requests_waiting", "requests without a slot"),
    Definition("gauge", "outstanding_tokens", "tokens that these may still take"),
    Definition("gauge", "kv_cache_usage_perc", "share of the cache that running requests use, 0 to 1"),
    Definition("gauge", "goodput_tokens_per_second", "of the last steps"),
    Definition("gauge", "predicted_goodput_tokens_per_second", "what the policy expected of the last step"),
    Definition("gauge", _OLD_PREDICTED_GOODPUT, "old name of predicted_goodput_tokens_per_second"),
)

REFUSED = Definition("counter", "requests_refused", "requests whose engine was full")
"""By ``model``, counted where all requests pass."""


class EngineMetrics:
    """Those of one replica of an engine; all but the histograms are told from the start."""

    def __init__(self, engine: str) -> None:
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for one in ENGINE_METRICS:
            name, keys = PREFIX + one.name, ("engine", *([one.label] if one.label else []))
            made: Counter | Gauge | Histogram
            if one.kind == "counter":
                made = self._counters[one.name] = Counter(name, one.about, tag_keys=keys)
            elif one.kind == "gauge":
                made = self._gauges[one.name] = Gauge(name, one.about, tag_keys=keys)
            else:
                made = self._histograms[one.name] = Histogram(name, one.about, list(one.boundaries), tag_keys=keys)
            made.set_default_tags({"engine": engine})
            if one.kind == "counter":
                for labels in one.labels:
                    made._record(0.0, tags=labels)  # `inc` takes no zero

    def request(self, prompt_tokens: int) -> RequestMetrics:
        """For a request that has just come."""
        return RequestMetrics(self, prompt_tokens)

    def increase(self, name: str, count: int, **labels: str) -> None:
        """Adds to a counter."""
        if count:
            self._counters[name].inc(count, tags=labels)

    def observe(self, name: str, seconds: float) -> None:
        """Adds to a histogram."""
        self._histograms[name].observe(seconds)

    def engine(self, statistics: EngineStatistics) -> None:
        """Sets the gauges from the engine's statistics."""
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


class RequestMetrics:
    """One request's share in its engine's metrics."""

    def __init__(self, metrics: EngineMetrics, prompt_tokens: int) -> None:
        self._metrics, self._prompt_tokens = metrics, prompt_tokens
        self._came = time.perf_counter()
        self._begun = False

    def progress(self, progress: RequestOutput) -> None:
        """Takes in what a step brought."""
        seconds = time.perf_counter() - self._came
        if progress.tokens:
            self._metrics.increase("generation_tokens", len(progress.tokens))
            # The completion can't tell: the engine goes on filling it while its progress is on the way here.
            if not self._begun:
                self._metrics.observe("time_to_first_token_seconds", seconds)
            self._begun = True
        if progress.finish_reason:
            self._finished(progress.completion, progress.finish_reason, seconds)

    def _finished(self, done: Completion, reason: str, seconds: float) -> None:
        metrics = self._metrics
        metrics.increase("request_success", 1, finished_reason=reason)
        metrics.observe("e2e_request_latency_seconds", seconds)
        metrics.observe("request_queue_time_seconds", done.waiting_seconds)
        metrics.increase("prompt_tokens", self._prompt_tokens)
        metrics.increase("prefix_cache_hits", done.reused_tokens)
        if len(done.tokens) > 1:
            metrics.observe("time_per_output_token_seconds", done.seconds_per_token)
        metrics.increase("spec_decode_num_drafts", sum(step.topology.nodes > 0 for step in done.steps))
        metrics.increase("spec_decode_num_draft_tokens", done.drafted)
        metrics.increase("spec_decode_num_accepted_tokens", done.accepted)
        for depth, count in enumerate(done.accepted_by_depth):
            metrics.increase("spec_decode_num_accepted_tokens_per_pos", count, position=str(depth))
        for nodes, count in done.tree_counts.items():
            metrics.increase("steps", count, nodes=str(nodes))


def refusals() -> Counter:
    """Requests of a ``model`` that got a 429 because its engine was full."""
    return Counter(PREFIX + REFUSED.name, REFUSED.about, tag_keys=("model",))


def zero_lines(engines: Sequence[str], models: Sequence[str]) -> str:
    """All metrics in Prometheus' text format as they are before anything has happened, as Ray would tell them."""
    lines: list[str] = []
    for one, key, names in [*((one, "engine", engines) for one in ENGINE_METRICS), (REFUSED, "model", models)]:
        name = f"ray_{PREFIX}{one.name}" + ("_total" if one.kind == "counter" else "")
        lines += [f"# HELP {name} {one.about}", f"# TYPE {name} {one.kind}"]
        for owner in names:
            for labels in one.labels:
                told = ",".join(f'{label}="{value}"' for label, value in ({key: owner} | labels).items())
                lines += _zeros(one, name, told)
    return "".join(f"{line}\n" for line in lines)


def _zeros(one: Definition, name: str, labels: str) -> Iterator[str]:
    if one.kind != "histogram":
        yield f"{name}{{{labels}}} 0.0"
        return
    for bound in (*one.boundaries, "+Inf"):
        yield f'{name}_bucket{{{labels},le="{bound}"}} 0.0'
    yield f"{name}_count{{{labels}}} 0.0"
    yield f"{name}_sum{{{labels}}} 0.0"
