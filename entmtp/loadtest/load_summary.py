"""Summary of a load test: throughput, latency percentiles and goodput of an endpoint; comparison of two endpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from entmtp.intervals import Estimate, paired_ratio
from entmtp.loadtest.levels import Level
from entmtp.loadtest.traffic import RequestOutcome
from entmtp.tracking.names import key_part

PERCENTILES = (50, 90, 99)
QUANTITIES = ("ttft", "tpot", "itl", "e2e")
"""Latencies: until the first token, per token after it, between received chunks, of the whole answer."""


@dataclass(frozen=True)
class Slo:
    """Service level objective: bounds of latency, in seconds."""

    ttft: float
    tpot: float

    def is_met_by(self, outcome: RequestOutcome) -> bool:
        """Whether the request succeeded within the objective."""
        return outcome.error is None and outcome.ttft <= self.ttft and (outcome.tpot or 0.0) <= self.tpot


@dataclass(frozen=True)
class LoadSummary:
    """Summary of one endpoint at one level of load; times in seconds.

    Attributes:
        goodput: requests a second within the objective.
        slo_share: share of the requests within the objective.
        percentiles: by quantity (:data:`QUANTITIES`), then by percentile.
        differing: number of answers that differ in a character from the first endpoint's.
    """

    endpoint: str
    requests: int
    seconds: float
    tokens_per_second: float
    goodput: float
    slo_share: float
    errors: dict[str, int]
    percentiles: dict[str, dict[int, float]]
    tau: float | None
    differing: int

    def metrics(self) -> dict[str, float]:
        """Metrics for MLflow, by name."""
        found = {
            "requests": float(self.requests),
            "tokens_per_second": self.tokens_per_second,
            "goodput_requests_per_second": self.goodput,
            "slo_share": self.slo_share,
            "errors": float(sum(self.errors.values())),
            "differing_texts": float(self.differing),
        }
        for kind, count in self.errors.items():
            name = f"errors.{key_part(kind)}"  # a service's own name
            found[name] = found.get(name, 0.0) + count
        for quantity, values in self.percentiles.items():
            found |= {f"{quantity}.p{percentile}": value for percentile, value in values.items()}
        return found | ({} if self.tau is None else {"tau": self.tau})


def summarise_load(
    endpoint: str, rounds: Sequence[Sequence[RequestOutcome]], slo: Slo, texts: Mapping[tuple[int, int], str]
) -> LoadSummary:
    """Summarise all rounds of one endpoint. ``texts`` are the first endpoint's, by round and number."""
    outcomes = [one for round_ in rounds for one in round_]
    seconds = sum(max((one.ended for one in round_), default=0.0) for round_ in rounds)
    good = [one for one in outcomes if one.error is None]
    taus = [one.tau for one in good if one.tau is not None]
    within_slo = sum(map(slo.is_met_by, outcomes))
    tpots = [tpot for one in good if (tpot := one.tpot) is not None]
    quantities = {
        "ttft": [one.ttft for one in good],
        "tpot": tpots,
        "itl": [gap for one in good for gap in one.itl],
        "e2e": [one.seconds for one in good],
    }
    return LoadSummary(
        endpoint=endpoint,
        requests=len(outcomes),
        seconds=seconds,
        tokens_per_second=sum(one.tokens for one in good) / max(seconds, 1e-9),
        goodput=within_slo / max(seconds, 1e-9),
        slo_share=within_slo / max(1, len(outcomes)),
        errors=dict(Counter(one.error for one in outcomes if one.error is not None)),
        percentiles={name: _percentiles(values) for name, values in quantities.items() if values},
        tau=float(np.mean(taus)) if taus else None,
        differing=sum(
            texts.get((at, one.number), one.text) != one.text
            for at, round_ in enumerate(rounds)
            for one in round_
            if one.error is None
        ),
    )


def speedup(
    rounds: Sequence[Sequence[RequestOutcome]], others: Sequence[Sequence[RequestOutcome]], quantity: str
) -> Estimate | None:
    """Speedup of the first over the other, over requests that both answered; ``quantity`` is e2e or ttft.

    A whole answer (e2e) counts for as many tokens as the shorter of the two has, since texts may differ. None where
    there is no such request.
    """
    mine = {(at, one.number): one for at, round_ in enumerate(rounds) for one in round_ if one.error is None}
    theirs = {(at, one.number): one for at, round_ in enumerate(others) for one in round_ if one.error is None}
    both = [(mine[key], theirs[key]) for key in sorted(mine.keys() & theirs.keys())]
    if not both:
        return None
    if quantity == "ttft":
        seconds = [(other.ttft, one.ttft) for one, other in both]
    else:
        common = [min(one.tokens, other.tokens) for one, other in both]
        seconds = [(b.seconds_for(tokens), a.seconds_for(tokens)) for (a, b), tokens in zip(both, common)]
    return paired_ratio(*np.array(seconds).T).estimate()


def outcome_table(found: Mapping[Level, Mapping[str, Sequence[Sequence[RequestOutcome]]]]) -> pa.Table:
    """Table with a row for each request."""
    rows = [
        {
            "endpoint": endpoint,
            "users": level.users,
            "rate": level.rate,
            "round": at,
            "number": one.number,
            "began": one.began,
            "seconds": one.seconds,
            "ttft": one.ttft if one.chunks else None,
            "tpot": one.tpot if one.chunks else None,
            "tokens": one.tokens,
            "tau": one.tau,
            "error": one.error,
        }
        for level, endpoints in found.items()
        for endpoint, rounds in endpoints.items()
        for at, round_ in enumerate(rounds)
        for one in round_
    ]
    return pa.Table.from_pylist(rows)


def level_table(summaries: Mapping[Level, Sequence[LoadSummary]]) -> pa.Table:
    """Table with a row for each endpoint at each level: throughput, and the percentiles of latency in seconds."""
    rows = [
        {
            "endpoint": one.endpoint,
            "users": level.users,
            "rate": level.rate,
            "requests": one.requests,
            "errors": sum(one.errors.values()),
            "tokens_per_second": one.tokens_per_second,
            "goodput_requests_per_second": one.goodput,
            "slo_share": one.slo_share,
            "tau": one.tau,
            **{
                f"{quantity}_p{percentile}": one.percentiles.get(quantity, {}).get(percentile)
                for quantity in QUANTITIES
                for percentile in PERCENTILES
            },
        }
        for level, found in summaries.items()
        for one in found
    ]
    return pa.Table.from_pylist(rows)


def _percentiles(values: Iterable[float]) -> dict[int, float]:
    given = np.array(list(values))
    return {percentile: float(np.percentile(given, percentile)) for percentile in PERCENTILES}
