"""Usage of any number of answers to any number of prompts."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from deployments.http.usage import usage_of
from deployments.protocol.speculative_metrics import metrics_of
from deployments.settings import EngineArgs
from entmtp.decoding.outputs import RequestOutput, RequestStats
from entmtp.decoding.request import Request
from entmtp.settings import SamplingParams
from tests.helpers.http_api import STATS

ENGINE = EngineArgs(name="e", model_name="m")


def answered(stats: RequestStats | None) -> RequestOutput:
    return RequestOutput("r", stats=stats)


def usage(prompts: list[int], reused: list[list[int]]) -> tuple[int, int]:
    """Prompt tokens, and those that lay in the cache; ``reused`` has a number for each answer to each prompt."""
    requests = [
        Request(f"{at}.{number}", [1] * length, SamplingParams(seed=0), number, prompt_index=at)
        for at, length in enumerate(prompts)
        for number in range(len(reused[at]))
    ]
    answers = [answered(replace(STATS, reused_tokens=own)) for each in reused for own in each]
    reported = usage_of(ENGINE, requests, answers)
    assert reported.prompt_tokens_details is not None
    return reported.prompt_tokens, reported.prompt_tokens_details.cached_tokens or 0


def test_answers_to_one_prompt_do_not_count_it_again() -> None:
    assert usage([155], [[0, 154, 154, 154]]) == (155, 0)
    assert usage([155], [[154, 154, 154, 154]]) == (155, 154)
    assert usage([155, 40], [[154, 154], [16, 39]]) == (195, 170)


@given(st.data(), st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(1, 5))
def test_no_more_tokens_are_cached_than_there_are(data: st.DataObject, prompts: list[int], n: int) -> None:
    reused = [[data.draw(st.integers(0, length - 1)) for _ in range(n)] for length in prompts]
    prompt_tokens, cached = usage(prompts, reused)
    assert prompt_tokens == sum(prompts)
    assert cached == sum(map(min, reused)) <= prompt_tokens


def stats_of(accepted: list[int], deepest: int, nodes: int) -> RequestStats:
    """Statistics of steps with trees of ``nodes``, by the accepted nodes of each step."""
    by_depth = [sum(one > depth for one in accepted) for depth in range(max(accepted))]
    return replace(
        STATS,
        accepted=sum(accepted),
        accepted_by_depth=by_depth,
        deepest=deepest,
        tree_counts={nodes: len(accepted)},
    )


def test_metrics_are_vllms() -> None:
    reported = metrics_of([answered(stats_of([0, 2, 0, 1, 2], deepest=3, nodes=4))])
    assert reported == {
        "speculative_decoding": {
            "mean_acceptance_length": 2.0,
            "draft_acceptance_rate": 0.25,
            "acceptance_histogram": [2, 1, 2, 0],
            "num_spec_steps": 5,
            "num_accepted_draft_tokens": 5,
            "num_draft_tokens": 20,
            "num_spec_tokens": 3,
        }
    }


def test_metrics_are_of_one_answer_that_was_drafted_for() -> None:
    drafted = answered(STATS)
    assert metrics_of([drafted, drafted]) is None
    assert metrics_of([answered(None)]) is None
    assert metrics_of([answered(stats_of([0, 0], deepest=0, nodes=0))]) is None


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 3))
def test_the_histogram_counts_every_step_and_every_accepted_token(accepted: list[int], more: int) -> None:
    deepest = max(1, max(accepted) + more)
    reported = metrics_of([answered(stats_of(accepted, deepest, nodes=deepest))])
    assert reported is not None
    found = reported["speculative_decoding"]
    assert found["acceptance_histogram"] == [accepted.count(j) for j in range(deepest + 1)]
    assert found["mean_acceptance_length"] == 1 + sum(accepted) / len(accepted)
