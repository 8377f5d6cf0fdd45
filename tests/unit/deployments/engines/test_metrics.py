"""A request's share in its engine's metrics, and their values before anything has happened."""

from __future__ import annotations

import time
from collections import defaultdict

import pytest

from deployments.engines.metrics import ENGINE_METRICS, EngineMetrics, zero_lines
from deployments.engines.metrics_scrape import merge_metrics
from deployments.engines.vllm_metrics import VLLM_NAMES, vllm_lines
from entmtp.decoding.outputs import Completion, EngineStatistics, FinishReason, RequestOutput


class Recorded(EngineMetrics):
    """Keeps what would go to Ray."""

    def __init__(self) -> None:
        super().__init__("e")
        self.seen: dict[str, list[float]] = defaultdict(list)

    def increase(self, name: str, count: int, **labels: str) -> None:
        super().increase(name, count, **labels)
        self.seen[name + "".join(f" {value}" for value in labels.values())].append(count)

    def observe(self, name: str, seconds: float) -> None:
        super().observe(name, seconds)
        self.seen[name].append(seconds)


def progress(tokens: list[int], completion: Completion, end: FinishReason | None = None) -> RequestOutput:
    return RequestOutput("r", tokens, finish_reason=end, stats=completion.stats if end else None)


def test_the_first_token_is_seen_once_and_when_it_comes() -> None:
    """Also where the engine is ahead of who reads its progress: the completion holds all tokens by then."""
    metrics = Recorded()
    done = Completion(tokens=[1, 2, 3, 4], seconds=9.0, first_token_seconds=0.5, finish_reason="length")
    request = metrics.start_request(7)
    request.progress(progress([], done))
    assert not metrics.seen["time_to_first_token_seconds"]
    time.sleep(0.02)
    request.progress(progress([1], done))
    (first,) = metrics.seen["time_to_first_token_seconds"]
    assert 0.02 <= first < 5
    time.sleep(0.02)
    request.progress(progress([2, 3], done))
    request.progress(progress([4], done, "length"))
    assert metrics.seen["time_to_first_token_seconds"] == [first]
    assert metrics.seen["generation_tokens"] == [1, 2, 1]
    assert metrics.seen["e2e_request_latency_seconds"][0] >= first + 0.02
    assert metrics.seen["prompt_tokens"] == [7]
    assert metrics.seen["request_success length"] == [1]


def test_an_answer_of_one_step_has_a_first_token_too() -> None:
    metrics = Recorded()
    metrics.start_request(1).progress(progress([5, 6], Completion(tokens=[5, 6], finish_reason="stop"), "stop"))
    assert len(metrics.seen["time_to_first_token_seconds"]) == 1


def test_every_gauge_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = EngineMetrics("e")
    reported: list[str] = []
    for name, gauge in metrics._gauges.items():
        monkeypatch.setattr(gauge, "set", lambda _, name=name: reported.append(name))
    metrics.set_gauges(EngineStatistics(1, 2, 3, 4.0, 5, 6, 7, 8, 9.0, None))
    assert sorted(reported) == sorted(one.name for one in ENGINE_METRICS if one.kind == "gauge")


def test_the_predicted_goodput_is_exported_under_its_old_name_too(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = EngineMetrics("e")
    values: dict[str, float] = {}
    for name, gauge in metrics._gauges.items():
        monkeypatch.setattr(gauge, "set", lambda value, name=name: values.update({name: value}))
    metrics.set_gauges(EngineStatistics(1, 2, 3, 4.0, 5, 6, 7, 8, 9.0, 0.25))
    assert values["predicted_goodput_tokens_per_second"] == 250
    assert values["goodput_foretold_tokens_per_second"] == 250


def test_every_metric_is_there_before_anything_has_happened() -> None:
    text = merge_metrics([], zero_lines(["e", "f"], ["m"]))
    for one in ENGINE_METRICS:
        for engine in ("e", "f"):
            assert any(
                line.startswith(f"ray_entmtp_{one.name}") and f'engine="{engine}"' in line and line.endswith(" 0.0")
                for line in text.splitlines()
            )
    assert 'ray_entmtp_requests_refused_total{model="m"} 0.0' in text
    assert 'ray_entmtp_time_to_first_token_seconds_bucket{engine="e",le="+Inf"} 0.0' in text
    assert 'ray_entmtp_request_success_total{engine="e",finished_reason="length"} 0.0' in text


@pytest.mark.parametrize("engine", ["e", "f"])
def test_a_metric_that_is_told_is_not_told_as_zero(engine: str) -> None:
    sample = f'ray_entmtp_num_requests_running{{NodeAddress="x",engine="{engine}"}} 3.0'
    reported = f"# HELP ray_entmtp_num_requests_running requests in slots\n{sample}\n"
    lines = merge_metrics([reported], zero_lines(["e", "f"], ["m"])).splitlines()
    ours = [line for line in lines if line.startswith("ray_entmtp_num_requests_running")]
    assert len(ours) == 2
    assert sample in ours
    assert sum(line == "# HELP ray_entmtp_num_requests_running requests in slots" for line in lines) == 1


def test_time_between_outputs_is_recorded_for_each_after_the_first() -> None:
    metrics = Recorded()
    request, done = metrics.start_request(1), Completion(tokens=[1, 2, 3], finish_reason="length")
    request.progress(progress([1], done))
    time.sleep(0.02)
    request.progress(progress([2], done))
    request.progress(progress([3], done, "length"))
    first, second = metrics.seen["inter_token_latency_seconds"]
    assert first >= 0.02 > second


def test_vllms_names_have_the_same_values_and_the_models_name() -> None:
    reported = [
        "# TYPE ray_entmtp_prompt_tokens_total counter",
        'ray_entmtp_prompt_tokens_total{WorkerId="1",engine="e"} 7.0',
        "# TYPE ray_entmtp_inter_token_latency_seconds histogram",
        'ray_entmtp_inter_token_latency_seconds_bucket{engine="e",le="0.1"} 2.0',
        'ray_entmtp_steps_total{engine="e",nodes="3"} 5.0',
    ]
    assert vllm_lines("\n".join(reported), {"e": "m"}).splitlines() == [
        "# TYPE vllm:prompt_tokens_total counter",
        'vllm:prompt_tokens_total{model_name="m",WorkerId="1",engine="e"} 7.0',
        "# TYPE vllm:prefix_cache_queries_total counter",
        'vllm:prefix_cache_queries_total{model_name="m",WorkerId="1",engine="e"} 7.0',
        "# TYPE vllm:inter_token_latency_seconds histogram",
        'vllm:inter_token_latency_seconds_bucket{model_name="m",engine="e",le="0.1"} 2.0',
        "# TYPE vllm:time_per_output_token_seconds histogram",
        'vllm:time_per_output_token_seconds_bucket{model_name="m",engine="e",le="0.1"} 2.0',
    ]


def test_every_metric_that_vllm_has_too_is_there_from_the_start() -> None:
    text = vllm_lines(zero_lines(["e"], ["m"]), {"e": "m"})
    assert {ours for ours in VLLM_NAMES if ours not in {one.name for one in ENGINE_METRICS}} == set()
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "prompt_tokens_total",
        "generation_tokens_total",
        "time_to_first_token_seconds_bucket",
        "time_per_output_token_seconds_bucket",
        "inter_token_latency_seconds_sum",
        "e2e_request_latency_seconds_count",
        "request_queue_time_seconds_bucket",
        "spec_decode_num_accepted_tokens_per_pos_total",
        "request_success_total",
    ):
        assert f'\nvllm:{name}{{model_name="m",engine="e"' in text, name
