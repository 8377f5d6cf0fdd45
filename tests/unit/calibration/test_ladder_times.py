"""Ladders replayed all at once take the steps of each one replayed by itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entmtp.calibration.ladder_times import ladder_times
from entmtp.calibration.policy_replay import replay_steps
from entmtp.policies.ladder import Ladder, LadderPolicy
from entmtp.trees.topology import Topology
from tests.helpers.small_cases import drawn_trace
from tests.helpers.tiny_models import topologies


@st.composite
def ladders(draw: st.DrawFn, window: int) -> Ladder:
    edges = sorted(draw(st.sets(st.sampled_from([0.1, 0.3, 0.45, 0.5, 0.55, 0.7, 0.9]), max_size=3)))
    trees = st.one_of(st.just(Topology.root_only()), topologies())
    return Ladder(tuple(edges), tuple(draw(trees) for _ in range(len(edges) + 1)), window)


@given(st.data(), st.integers(1, 8), st.sampled_from([0.0, 0.05, 0.3]))
def test_times_are_those_of_the_policys_own_steps(data: st.DataObject, window: int, hysteresis: float) -> None:
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    texts = [drawn_trace(length, [0.5, 0.2], heads=4, seed=seed) for seed, length in enumerate(lengths)]
    tried = data.draw(st.lists(ladders(window), min_size=1, max_size=3))

    def cost(tree: Topology) -> float:
        return 10 + 1.5 * tree.nodes + 0.3 * tree.max_depth

    found = ladder_times(texts, tried, hysteresis, cost)
    policies = [LadderPolicy(ladder, hysteresis) for ladder in tried]
    expected = [[sum(cost(step.topology) for step in replay_steps(text, one)) for text in texts] for one in policies]
    assert found == pytest.approx(np.array(expected))
