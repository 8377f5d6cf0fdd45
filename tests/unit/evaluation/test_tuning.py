"""Thresholds of the ladder are judged on texts other than those that their rungs are taken from."""

from __future__ import annotations

import numpy as np

from entmtp.evaluation.prediction import step_rows
from entmtp.evaluation.tuning import tuned_thresholds
from entmtp.trees.topology import Topology
from entmtp.trees.trace import RankTrace
from tests.small import trace_of

CALM, WILD = 0.1, 2.0


def text(rank_where_calm: int, seed: int) -> RankTrace:
    """One rank where entropy is low and the other one where it is high."""
    wild = np.random.default_rng(seed).random(200) < 0.5
    ranks = [[1 - rank_where_calm if each else rank_where_calm] for each in wild]
    return trace_of(ranks, [WILD if each else CALM for each in wild])


def tuned(traces: list[RankTrace]) -> list[float]:
    steps = step_rows(traces, [Topology.of([(0,)])], window=1)
    return tuned_thresholds(
        traces, steps, lambda tree: 10 + 2.0 * tree.nodes, window=1, hysteresis=0.0, most_rungs=2, fewest_steps=20
    )


def test_a_threshold_that_holds_in_other_texts_too_is_found() -> None:
    (threshold,) = tuned([text(0, seed=1), text(0, seed=2)])
    assert CALM < threshold <= WILD


def test_a_threshold_that_holds_in_its_own_text_alone_is_not() -> None:
    """In one text entropy says the opposite of what it says in the other."""
    assert tuned([text(0, seed=1), text(1, seed=2)]) == []
