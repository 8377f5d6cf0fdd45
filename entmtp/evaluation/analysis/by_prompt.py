"""Requests grouped by prompt, the unit of every interval, and the measures of an arm's prompts.

Repetitions of a prompt count by their median, so that other load on the machine during one of them does not count.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

import numpy as np
import pyarrow as pa

from entmtp import methods
from entmtp.intervals import Estimate, Floats, ratio_of_sums
from entmtp.suites import SUITES

Request = dict[str, Any]
Prompts = Mapping[str, Sequence[Request]]  # prompt -> its repetitions


def by_arm(requests: pa.Table) -> dict[tuple[str, str], Prompts]:
    """Group requests by suite and arm (in the order of tables), then by prompt."""
    grouped: dict[tuple[str, str], dict[str, list[Request]]] = defaultdict(lambda: defaultdict(list))
    for request in requests.to_pylist():
        grouped[request["suite"], request["arm"]][request["prompt_id"]].append(request)
    order = sorted(grouped, key=lambda key: (_suite_order(key[0]), methods.order(key[1])))
    return {key: grouped[key] for key in order}


def _suite_order(name: str) -> tuple[int, str]:
    known = tuple(SUITES)
    return (known.index(name) if name in known else len(known), name)


def tokens(repetitions: Sequence[Request]) -> float:
    """Median number of new tokens of a prompt."""
    return median(request["new_tokens"] for request in repetitions)


def seconds_per_token(repetitions: Sequence[Request]) -> float:
    """Median seconds per new token of a prompt, the prefill included."""
    # A request without new tokens counts as one token.
    return median(request["seconds"] / max(1, request["new_tokens"]) for request in repetitions)


def tokens_per_second(prompts: Prompts) -> float:
    """New tokens per second over all prompts."""
    seconds = [tokens(repetitions) * seconds_per_token(repetitions) for repetitions in prompts.values()]
    return sum(map(tokens, prompts.values())) / sum(seconds)


def accepted_per_step(prompts: Prompts) -> Estimate:
    """Tokens per step (tau) over all prompts, the root included."""
    return ratio_of_sums(_totals(prompts, "new_tokens"), _totals(prompts, "steps"))


def _totals(prompts: Prompts, field: str) -> Floats:
    """Sums of a field over each prompt's repetitions, `[prompts]`."""
    return np.array([sum(request[field] for request in repetitions) for repetitions in prompts.values()], np.float64)


def scores(prompts: Prompts) -> list[float]:
    """The suite's own score of each prompt that has one."""
    found = (
        [request["score"] for request in repetitions if request["score"] is not None]
        for repetitions in prompts.values()
    )
    return [fmean(values) for values in found if values]


def log_likelihoods(prompts: Prompts) -> Floats:
    """Log-likelihood of each prompt's text, nats per token, the mean over its repetitions, `[prompts]`."""
    return np.array([_log_likelihood(repetitions) for repetitions in prompts.values()])


def likelihood_differences(ours: Prompts, theirs: Prompts) -> Floats:
    """Our log-likelihood minus theirs, nats per token, `[shared prompts]`."""
    shared = sorted(set(ours) & set(theirs))
    return np.array([_log_likelihood(ours[prompt]) - _log_likelihood(theirs[prompt]) for prompt in shared])


def _log_likelihood(repetitions: Sequence[Request]) -> float:
    return fmean(request["log_likelihood"] for request in repetitions)


def paired_seconds(ours: Prompts, theirs: Prompts) -> tuple[Floats, Floats]:
    """Our and their seconds for each prompt that both have, `[shared prompts]` in the order of their names.

    Both are for their number of tokens, so that a difference after a tie does not change the compared work.
    """
    shared = sorted(set(ours) & set(theirs))
    work = np.array([tokens(theirs[prompt]) for prompt in shared])
    our_seconds = work * np.array([seconds_per_token(ours[prompt]) for prompt in shared])
    return our_seconds, work * np.array([seconds_per_token(theirs[prompt]) for prompt in shared])
