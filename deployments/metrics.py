"""Prometheus metrics, through Ray's own; the names are vLLM's where the same thing is meant.

Every node of a cluster exports them, with `ray_` in front, where Ray's own metrics are; `/metrics` of the service
gathers them.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any, TypeVar

from ray.util.metrics import Counter, Gauge, Histogram, Metric

from entmtp.decoding.completion import Completion
from entmtp.decoding.progress import EngineStatistics, Progress

M = TypeVar("M", bound=Metric)
PREFIX = "entmtp_"
_SECONDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0]
_TOKEN_SECONDS = [0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0]


class EngineMetrics:
    """Those of one replica of an engine."""

    def __init__(self, engine: str) -> None:
        def made(kind: type[M], name: str, about: str, *keys: str, **options: Any) -> M:
            metric = kind(PREFIX + name, about, tag_keys=("engine", *keys), **options)
            metric.set_default_tags({"engine": engine})
            return metric

        def histogram(name: str, about: str, boundaries: list[float]) -> Histogram:
            return made(Histogram, name, about, boundaries=boundaries)

        counter, gauge = partial(made, Counter), partial(made, Gauge)
        self._drafts = counter("spec_decode_num_drafts", "steps that verified a tree")
        self._draft_tokens = counter("spec_decode_num_draft_tokens", "tree nodes that were verified")
        self._accepted = counter("spec_decode_num_accepted_tokens", "tree nodes that were kept")
        self._accepted_at = counter(
            "spec_decode_num_accepted_tokens_per_pos", "steps that kept a node at this depth, from 0", "position"
        )
        self._steps = counter("steps", "steps of requests, by the nodes of their tree", "nodes")
        self._prompt_tokens = counter("prompt_tokens", "prompt tokens of finished requests")
        self._cached_tokens = counter("prefix_cache_hits", "prompt tokens that lay in the cache already")
        self._new_tokens = counter("generation_tokens", "new tokens")
        self._success = counter("request_success", "finished requests", "finished_reason")
        self._first = histogram("time_to_first_token_seconds", "from the replica's sight", _SECONDS)
        self._per_token = histogram("time_per_output_token_seconds", "behind the first", _TOKEN_SECONDS)
        self._whole = histogram("e2e_request_latency_seconds", "from the replica's sight", _SECONDS)
        self._queue = histogram("request_queue_time_seconds", "until a slot was free", _SECONDS)
        self._running = gauge("num_requests_running", "requests in slots")
        self._waiting = gauge("num_requests_waiting", "requests without a slot")
        self._outstanding = gauge("outstanding_tokens", "tokens that these may still take")
        self._cache = gauge("kv_cache_usage_perc", "share of the cache that running requests use, 0 to 1")
        self._goodput = gauge("goodput_tokens_per_second", "of the last steps")
        self._foretold = gauge("goodput_foretold_tokens_per_second", "what the policy expected of the last step")

    def progress(self, progress: Progress, began: float, prompt_tokens: int) -> None:
        """Takes in what a step brought to a request that arrived at ``began`` (``time.perf_counter()``)."""
        if progress.tokens:
            self._new_tokens.inc(len(progress.tokens))
            if len(progress.completion.tokens) == len(progress.tokens):
                self._first.observe(time.perf_counter() - began)
        if progress.finish_reason:
            self._finished(progress.completion, progress.finish_reason, time.perf_counter() - began, prompt_tokens)

    def _finished(self, done: Completion, reason: str, seconds: float, prompt_tokens: int) -> None:
        self._success.inc(tags={"finished_reason": reason})
        self._whole.observe(seconds)
        self._queue.observe(done.waiting_seconds)
        _inc(self._prompt_tokens, prompt_tokens)
        _inc(self._cached_tokens, done.reused_tokens)
        if len(done.tokens) > 1:
            self._per_token.observe(done.seconds_per_token)
        _inc(self._drafts, sum(step.topology.nodes > 0 for step in done.steps))
        _inc(self._draft_tokens, done.drafted)
        _inc(self._accepted, done.accepted)
        for depth, count in enumerate(done.accepted_by_depth):
            _inc(self._accepted_at, count, position=str(depth))
        for nodes, count in done.tree_counts.items():
            _inc(self._steps, count, nodes=str(nodes))

    def engine(self, statistics: EngineStatistics) -> None:
        """Takes in how the engine fares."""
        self._running.set(statistics.running)
        self._waiting.set(statistics.waiting)
        self._outstanding.set(statistics.outstanding_tokens)
        self._cache.set(statistics.cache_tokens / max(1, statistics.cache_capacity))
        self._goodput.set(1e3 * statistics.goodput)
        self._foretold.set(1e3 * (statistics.goodput_foretold or 0.0))


def refusals() -> Counter:
    """Requests of a ``model`` that got a 429 because its engine was full; counted where all of them pass."""
    return Counter(PREFIX + "requests_refused", "requests whose engine was full", tag_keys=("model",))


def _inc(counter: Counter, count: int, **tags: str) -> None:
    """Ray's counters refuse zero."""
    if count:
        counter.inc(count, tags=tags)
