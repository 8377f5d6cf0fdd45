"""A machine without a model: what steps gain and take by formulas, so that thousands of them run in a second."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch

from entmtp.heads.interface import Expansion
from entmtp.policies.base import Policy
from entmtp.policies.dynamic import DynamicPolicy
from entmtp.policies.goodput import GoodputPolicy
from entmtp.policies.policy_cost import PolicyCost
from entmtp.policies.signals import SignalTracker
from entmtp.policies.step_cost import BatchedCost, CostTable, StepCost
from entmtp.trees.bank import MAX_NODES
from entmtp.trees.predictor import Predictor
from entmtp.trees.probability_calibration import ProbabilityCalibration
from entmtp.trees.topology import Path, Topology

NODES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 63)
SIZES = (0, 1, 2, 4, 8, 16)
COST = StepCost(
    nodes=list(SIZES),
    verify_ms=[20.0, 20.5, 21.0, 22.0, 24.0, 28.0],
    narrow_draft_ms=[2.0, 4.0],
    wide_draft_ms=[2.0, 4.0],
    wide_nodes=63,
    hardware="test",
)
"""Cost of trees of these sizes, of up to two levels."""

LEVELS = 4
NATS = (1.6, 0.8, 0.2)
"""Entropies of hard, middling and easy places of a text."""
GUESSES = ((0.38, 0.12, 0.05, 0.02), (0.52, 0.12, 0.05, 0.02), (0.62, 0.10, 0.04, 0.02))
"""Chances of the heads' four first guesses there, at each level."""

_CUMULATIVE = np.cumsum(GUESSES, axis=1).tolist()

PATHS: list[Path] = [path for depth in range(1, LEVELS + 1) for path in itertools.product(range(4), repeat=depth)]
PREDICTOR = Predictor(
    features=["entropy"],
    weights=[-1.0],
    bias=0.0,
    centres=[-nats for nats in NATS],
    shares=[0.3, 0.4, 0.3],
    paths=PATHS,
    probabilities=[[math.prod(chances[rank] for rank in path) for path in PATHS] for chances in GUESSES],
)
CHANCES = ProbabilityCalibration(
    slope=[1.0] * LEVELS,
    offset=[0.0] * LEVELS,
    follow=[np.average(GUESSES, axis=0, weights=PREDICTOR.shares).tolist()] * LEVELS,
)


def wide(nodes: int) -> Topology:
    """A tree of one level."""
    return Topology.of([(rank,) for rank in range(nodes)]) if nodes else Topology.root_only()


def goodput(cost: PolicyCost) -> Policy:
    return GoodputPolicy(PREDICTOR, cost, 8)


def dynamic(cost: PolicyCost) -> Policy:
    return DynamicPolicy(PREDICTOR, CHANCES, cost, 8)


def step_cost(batch: int = 1, per_level: float = 1.0) -> StepCost:
    """Steps as on two CPU cores, where plain decoding of one request takes 22 ms and the first node costs most."""
    plain, per_node = 22.0 + 3.0 * (batch - 1), 0.9 + 0.4 * (batch - 1)
    return StepCost(
        nodes=list(NODES),
        verify_ms=[plain + (5.0 if nodes else 0.0) + per_node * nodes for nodes in NODES],
        narrow_draft_ms=[per_level * depth for depth in range(1, LEVELS + 1)],
        wide_draft_ms=[per_level * depth for depth in range(1, LEVELS + 1)],
        wide_nodes=63,
        hardware="simulated",
    )


def times(cost: StepCost, factor: Callable[[int], float], draft: float = 1.0) -> StepCost:
    """``cost`` with each size's time, and that of drafting, multiplied."""
    verify = [ms * factor(nodes) for nodes, ms in zip(cost.nodes, cost.verify_ms, strict=True)]
    drafts = {name: [draft * ms for ms in getattr(cost, name)] for name in ("narrow_draft_ms", "wide_draft_ms")}
    return cost.model_copy(update={"verify_ms": verify} | drafts)


def machine(*costs: StepCost, spread: float = 0.0) -> BatchedCost:
    """Each of the costs for one more request than the one before, at any context."""
    tables = {batch: CostTable(contexts=[160], costs=[cost], spread=spread) for batch, cost in enumerate(costs, 1)}
    return BatchedCost(measured=tables)


class _Heads(Expansion):
    """Guesses of each request's next tokens, equally good at each level."""

    num_heads = LEVELS

    def __init__(self, chances: Sequence[Sequence[float]]) -> None:
        self._requests = list(range(len(chances)))
        self._log_probs = torch.tensor(chances).log()
        self._count = 1

    def next_level(self, parents: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        self._requests = [self._requests[parent // self._count] for parent in parents]
        self._count = min(count, self._log_probs.shape[1])
        log_probs = self._log_probs[self._requests, : self._count]
        return torch.zeros_like(log_probs, dtype=torch.int64), log_probs


def _begin(kinds: Sequence[int], drafting: Sequence[int]) -> _Heads:
    """Heads of the requests ``drafting``, whose texts are now of these ``kinds``."""
    return _Heads([GUESSES[kinds[request]] for request in drafting])


@dataclass(frozen=True)
class Steps:
    """What steps did ``[steps]``: tokens that they could expect, milliseconds, and nodes of their widest trees."""

    tokens: np.ndarray
    ms: np.ndarray
    nodes: np.ndarray

    def rate(self, begin: int = 0) -> float:
        """Tokens per millisecond from a step on."""
        return float(self.tokens[begin:].sum() / self.ms[begin:].sum())


def simulate(
    policy: Policy,
    truth: Callable[[int, int, int], StepCost] | StepCost,
    steps: int,
    *,
    batch: int = 1,
    seed: int = 0,
    noise: float = 0.0,
    context: Callable[[int], int] = lambda step: 160,
) -> Steps:
    """Steps of ``batch`` requests through texts of random difficulty.

    ``truth`` is the cost by step, batch and context, or one for all; a step takes it times lognormal ``noise``, which
    ``ms`` leaves out. Text and noise depend on the seed alone.
    """
    texts, noises, outcomes = (np.random.default_rng([seed, stream]) for stream in range(3))
    all_kinds = texts.choice(len(NATS), size=(steps, batch), p=PREDICTOR.shares).tolist()
    slowness = np.exp(noise * noises.standard_normal(steps)).tolist()
    draws = outcomes.random((steps, batch, LEVELS)).tolist()
    trackers = [SignalTracker(8) for _ in range(batch)]
    states = [policy.start() for _ in range(batch)]
    made: list[tuple[float, float, int]] = []
    for step, (kinds, slower) in enumerate(zip(all_kinds, slowness, strict=True)):
        signals = [
            tracker.start_step(step, NATS[kind], context(step)) for tracker, kind in zip(trackers, kinds, strict=True)
        ]
        chosen = policy.choose(
            signals,
            states,
            [MAX_NODES] * batch,
            partial(_begin, kinds),
        )
        trees = [choice.topology for choice in chosen]
        cost = truth if isinstance(truth, StepCost) else truth(step, batch, context(step))
        widest = max(trees, key=lambda tree: (tree.nodes, tree.max_depth))
        parts: Mapping[str, float] = {
            "draft": slower * cost.draft(widest),
            "verify": slower * cost.without_draft(widest.nodes),
        }
        policy.observe(trees, parts)
        for tracker, tree, kind, drawn in zip(trackers, trees, kinds, draws[step], strict=True):
            tracker.end_step(1 + _accepted(tree, kind, drawn))
        made.append((sum(map(_gain, trees, kinds)), cost(widest), widest.nodes))
    return Steps(*map(np.array, zip(*made, strict=True)))


@cache
def _chance(kind: int, path: Path) -> float:
    """Chance that a path is right in a text of this kind."""
    return math.prod(GUESSES[kind][rank] for rank in path)


def _gain(tree: Topology, kind: int) -> float:
    return 1 + sum(_chance(kind, path) for path in tree.paths)


def _accepted(tree: Topology, kind: int, draws: Sequence[float]) -> int:
    """Length of the path that is right, each level's right rank by a draw of its own."""
    path: Path = ()
    for draw in draws:
        path = (*path, bisect_left(_CUMULATIVE[kind], draw))
        if path not in tree.paths:
            return len(path) - 1
    return len(draws)
