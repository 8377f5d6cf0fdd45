"""Replay if the heads' calibrated chances are true (:mod:`entmtp.calibration.known_chances`).

Steps start where the dynamic policy's steps start in the texts, so that its share of the yardstick is measured there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from entmtp.calibration.known_chances import Expected, expected_tokens, known_chances, known_outcomes, outlook
from entmtp.calibration.policy_replay import ExpansionAt, replay_steps
from entmtp.calibration.replay import DYNAMIC, DecodingSpeed, policies, step_ms
from entmtp.policies.step_cost import TreeCost
from entmtp.trees.bank import TreeBank
from entmtp.trees.topology import Topology
from entmtp.trees.trace import RankTrace


@dataclass(frozen=True)
class KnownChancesReplay:
    """Expected decoding speeds.

    Attributes:
        best: the best policy, which knows every step's chances.
        dynamic: the dynamic policy with the trees that it chose in the texts; None if the cost of expanding is unknown.
        hindsight: the schedule that knows every step's right path.
    """

    best: DecodingSpeed
    dynamic: DecodingSpeed | None
    hindsight: DecodingSpeed


def replay_known_chances(
    traces: Sequence[RankTrace],
    expansions: Sequence[ExpansionAt],
    bank: TreeBank,
    cost: TreeCost,
    expanded: TreeCost | None,
) -> KnownChancesReplay:
    """Compute the expected speeds over the steps of texts.

    ``cost`` is for trees that are chosen before the heads run, ``expanded`` for trees that are expanded level by level.
    """
    policy_of = policies(bank, cost, traces[0].ranks.shape[1], expanded)[DYNAMIC]
    runs = [
        replay_steps(trace, policy_of(trace), expansion_at)
        for trace, expansion_at in zip(traces, expansions, strict=True)
    ]
    outlooks = [
        [outlook(expansion_at(step.position), bank.chances, step.topology) for step in run]
        for expansion_at, run in zip(expansions, runs, strict=True)
    ]
    seen = [one for text in outlooks for one in text]
    steps = [step for run in runs for step in run]
    first = np.cumsum([0, *map(len, runs[:-1])])

    def speed(expected: Expected) -> DecodingSpeed:
        tokens, ms = (np.add.reduceat(values, first) for values in (expected.tokens, expected.ms))
        return DecodingSpeed(tokens, ms, len(steps), cost(Topology.root_only()))

    return KnownChancesReplay(
        best=speed(known_chances(seen, cost)),
        dynamic=None
        if expanded is None
        else speed(
            Expected(
                np.array([expected_tokens(one, step.topology) for one, step in zip(seen, steps, strict=True)]),
                np.array([step_ms(step, expanded) for step in steps]),
            )
        ),
        hindsight=speed(known_outcomes(seen, cost)),
    )
