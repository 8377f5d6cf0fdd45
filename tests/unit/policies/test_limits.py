"""Limits on the nodes of a request's trees: known to every policy before it chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entmtp.heads.interface import Expansion
from entmtp.policies.acceptance_bias import AcceptanceBias
from entmtp.policies.base import BeginDraft, Policy
from entmtp.policies.dynamic import DynamicPolicy
from entmtp.policies.eagle2 import Eagle2Policy
from entmtp.policies.goodput import GoodputPolicy
from entmtp.policies.ladder import BankLadderPolicy, Ladder, LadderPolicy
from entmtp.policies.online_cost import OnlineStepCost
from entmtp.policies.policy_cost import FixedCost, PolicyCost
from entmtp.policies.signals import Signals
from entmtp.policies.static import BestStaticPolicy, ScheduledPolicy, SequencePolicy, StaticPolicy
from entmtp.policies.step_cost import BatchedCost, CostTable, StepCost, TreeCost
from entmtp.trees.bank import MAX_NODES
from entmtp.trees.probability_calibration import ProbabilityCalibration
from entmtp.trees.published import published_tree
from entmtp.trees.topology import Path, Topology
from entmtp.trees.trace_replay import accepted_length
from tests.helpers.small_cases import (
    frontier,
    small_bank,
    small_chances,
    small_cost,
    small_predictor,
    small_sharp_chances,
)
from tests.helpers.tiny_models import TREES

COST = small_cost(0.02, 0.02)
WIDE = Topology.of([(rank,) for rank in range(8)])


def batches(batch: int, context: int) -> StepCost:
    return small_cost(0.02 * batch, 0.02)


MEASURED = BatchedCost(measured={batch: CostTable(contexts=[160], costs=[batches(batch, 160)]) for batch in (1, 5)})


def goodput(cost: PolicyCost | None = None) -> GoodputPolicy:
    return GoodputPolicy(small_predictor(), cost or FixedCost(batches), 8)


def dynamic(chances: ProbabilityCalibration | None = None) -> DynamicPolicy:
    return DynamicPolicy(small_predictor(), chances or small_chances(), FixedCost(batches), 8)


POLICIES: dict[str, Callable[[], Policy]] = {
    "static": lambda: StaticPolicy(published_tree(), 8),
    "best-static": lambda: BestStaticPolicy(small_bank(), FixedCost(COST.of_batch), 8),
    "ladder": lambda: BankLadderPolicy(small_bank(), FixedCost(COST.of_batch), 0.05),
    "given ladder": lambda: LadderPolicy(Ladder((0.4, 0.9), (TREES["deep"], TREES["bushy"], WIDE), 8), 0.05),
    "scheduled": lambda: ScheduledPolicy(dict.fromkeys(range(0, 60, 2), TREES["bushy"]), 8),
    "sequence": lambda: SequencePolicy([TREES["deep"], TREES["bushy"], WIDE], 8),
    "goodput": goodput,
    "dynamic": dynamic,
    "dynamic by sharpness": lambda: dynamic(small_sharp_chances()),
    "eagle2": lambda: Eagle2Policy(8),
    "corrected": lambda: goodput(OnlineStepCost(MEASURED)),
}


class Guesses(Expansion):
    """Heads that are sure of little, and count their passes."""

    num_heads = 4

    def __init__(self, requests: Sequence[int] = (), probabilities: Sequence[float] = (0.5, 0.2, 0.1, 0.05)) -> None:
        self.requests = list(requests)
        self.passes = 0
        self._log_probs = torch.tensor(probabilities).log()

    def next_level(self, parents: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.passes += 1
        log_probs = self._log_probs[:count].expand(len(parents), -1)
        return torch.arange(log_probs.numel()).reshape(log_probs.shape), log_probs


def chosen(
    policy: Policy,
    signals: Sequence[Signals],
    states: Sequence[Any],
    limits: Sequence[int],
    begin: BeginDraft = Guesses,
) -> list[Topology]:
    return [choice.topology for choice in policy.choose(signals, states, limits, begin)]


limited = st.lists(
    st.tuples(st.sampled_from([0, 1, 2, 3, 5, 7, 40, MAX_NODES]), st.floats(0, 2)), min_size=1, max_size=5
)


@pytest.mark.parametrize("name", list(POLICIES))
@given(requests=limited, gained=st.integers(1, 4))
def test_no_tree_has_more_nodes_than_its_request_may_have(
    name: str, requests: list[tuple[int, float]], gained: int
) -> None:
    policy = POLICIES[name]()
    states = [policy.start() for _ in requests]
    limits = [limit for limit, _ in requests]
    drafted: list[int] = []

    def begin(drafting: Sequence[int]) -> Guesses:
        drafted.extend(drafting)
        return Guesses(drafting)

    for at in range(3):
        signals = [Signals(at, nats, nats, 1.0, gained if at else 0) for _, nats in requests]
        for tree, limit in zip(chosen(policy, signals, states, limits, begin), limits, strict=True):
            assert tree.nodes <= limit
            assert tree.nodes <= policy.max_nodes
            assert tree == Topology.root_only() or Topology.of(tree.paths).paths == tree.paths
    assert all(limits[request] for request in drafted), "a request that may have no tree was drafted for"


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "scheduled"])
def test_every_policy_says_how_large_its_trees_get(name: str) -> None:
    policy = POLICIES[name]()
    free = chosen(policy, [Signals(0, 0.1, 0.1, 1.0)], [policy.start()], [MAX_NODES])
    assert free[0].nodes <= policy.max_nodes < MAX_NODES


def test_what_a_bank_policy_may_choose_does_not_depend_on_costs() -> None:
    expensive = FixedCost(small_cost(50.0, 50.0).of_batch)
    bank = small_bank()
    ladder, static = BankLadderPolicy(bank, expensive, 0.05), BestStaticPolicy(bank, expensive, 8)
    assert ladder.ladder.nodes == 0
    assert ladder.max_nodes == max(len(one.paths) for one in bank.bins) > 0
    assert static.max_nodes == max(len(one.paths) for one in bank.by_depth) > 0


@pytest.mark.parametrize("name", list(POLICIES))
def test_nothing_changes_for_requests_without_a_limit_of_their_own(name: str) -> None:
    policy, again = POLICIES[name](), POLICIES[name]()
    easy = [Signals(0, 0.1, 0.1, 1.0)]
    (free,) = chosen(policy, easy, [policy.start()], [MAX_NODES])
    assert free.nodes > 3
    assert chosen(again, easy, [again.start()], [free.nodes]) == [free]


def test_one_that_may_have_no_tree_changes_no_other_ones() -> None:
    for policy in (goodput(), dynamic()):
        seen = [Signals(0, 0.1, 0.1, 1.0)] * 2
        plain, free = chosen(policy, seen, [AcceptanceBias(), AcceptanceBias()], [0, MAX_NODES])
        assert plain == Topology.root_only()
        assert free.nodes > 1


def test_a_step_without_any_tree_updates_the_biases_by_the_last_one_and_scores_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def score(*args: object) -> list[float]:
        raise AssertionError("scored")

    monkeypatch.setattr(GoodputPolicy, "scores", score)
    for policy in (goodput(), dynamic()):
        bias = AcceptanceBias(expected=0.5)
        assert chosen(policy, [Signals(1, 0.1, 0.1, 1.0, gained=3)], [bias], [0]) == [Topology.root_only()]
        assert bias.log_odds > 0
        assert bias.expected is None


def test_a_step_without_any_tree_corrects_no_cost_and_one_with_some_does() -> None:
    cost = OnlineStepCost(MEASURED)
    policy = goodput(cost)
    before = cost.filter_of(1).correction
    for limit, learns in ((0, False), (MAX_NODES, True)):
        trees = chosen(policy, [Signals(0, 0.1, 0.1, 1.0)], [policy.start()], [limit])
        policy.observe(trees, {"draft": 1.0, "verify": 50.0})
        assert (cost.filter_of(1).correction != before) == learns


def net_gain(policy: GoodputPolicy, tree: Topology, nats: float, cost: TreeCost, limits: Sequence[int]) -> float:
    predictor = small_predictor()
    gain = float(predictor.centre_weights(-nats) @ predictor.gains([tree])[:, 0])
    return gain - policy.rate(limits) * cost(tree)


@given(st.integers(0, 8), st.floats(0, 2), st.floats(0, 3))
def test_goodput_takes_the_best_tree_within_a_limit(limit: int, nats: float, per_node: float) -> None:
    cost = small_cost(per_node, 0.1)
    policy = GoodputPolicy(small_predictor(), FixedCost(cost.of_batch), 8)
    (found,) = chosen(policy, [Signals(0, nats, nats, 0.0)], [AcceptanceBias()], [limit])
    ours = net_gain(policy, found, nats, cost, [limit])
    for tree in policy.trees:
        if tree.nodes <= limit:
            assert ours >= net_gain(policy, tree, nats, cost, [limit]) - 1e-9


@given(st.lists(st.tuples(st.integers(0, 6), st.floats(0, 2)), min_size=2, max_size=4), st.floats(0, 3))
def test_goodput_takes_the_best_trees_of_a_batch_within_their_limits(
    requests: list[tuple[int, float]], per_node: float
) -> None:
    cost = small_cost(per_node, 0.1)
    policy = GoodputPolicy(small_predictor(), FixedCost(lambda batch, context: cost), 8)
    limits = [limit for limit, _ in requests]
    seen = [Signals(0, nats, nats, 0.0) for _, nats in requests]
    predictor, rate = small_predictor(), policy.rate(limits)

    def value(trees: Sequence[Topology]) -> float:
        gains = [
            float(predictor.centre_weights(-nats) @ predictor.gains([tree])[:, 0])
            for (_, nats), tree in zip(requests, trees, strict=True)
        ]
        return sum(gains) - rate * max(map(cost, trees))

    ours = value(chosen(policy, seen, [AcceptanceBias() for _ in seen], limits))
    for tree in policy.trees:
        others = [tree if tree.nodes <= limit else Topology.root_only() for limit in limits]
        assert ours >= value(others) - 1e-9


def test_the_token_price_of_a_limited_request_is_that_of_its_own_steps() -> None:
    """At the rate of large trees a small one looks worse than none, though it is the best that may be had."""
    cost = StepCost(
        nodes=[0, 1, 63],
        verify_ms=[20.0, 32.0, 32.0],
        narrow_draft_ms=[0.01] * 4,
        wide_draft_ms=[0.01] * 4,
        wide_nodes=63,
        hardware="test",
    )
    policy = GoodputPolicy(small_predictor(), FixedCost(cost.of_batch), 8)
    easy = [Signals(0, 0.2, 0.2, 0.0)]
    assert policy.rate([1]) < policy.rate([MAX_NODES])
    assert net_gain(policy, Topology.of([(0,)]), 0.2, cost, [MAX_NODES]) < net_gain(
        policy, Topology.root_only(), 0.2, cost, [MAX_NODES]
    )
    assert [tree.nodes for tree in chosen(policy, easy, [AcceptanceBias()], [1])] == [1]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 6])
def test_the_dynamic_policy_takes_the_likeliest_guesses_within_a_limit(limit: int) -> None:
    uncalibrated = ProbabilityCalibration(slope=[1.0] * 4, offset=[0.0] * 4, follow=[[0.5, 0.2, 0.1, 0.05]] * 4)
    easy = [Signals(0, 0.1, 0.1, 1.0)]
    (free,) = chosen(dynamic(uncalibrated), easy, [AcceptanceBias()], [MAX_NODES])
    (found,) = chosen(dynamic(uncalibrated), easy, [AcceptanceBias()], [limit])
    chance: dict[Path, float] = {(rank,): share for rank, share in enumerate((0.5, 0.2, 0.1, 0.05))}
    for path in free.paths:
        chance.setdefault(path, chance.get(path[:-1], 1.0) * chance[path[-1:]])
    best = sorted(free.paths, key=lambda path: (-round(chance[path], 9), len(path), path))[:limit]
    assert set(found.paths) == set(best)


def test_a_limit_hides_none_of_the_guesses_that_sharpness_is_read_from() -> None:
    chances, bias = small_sharp_chances(), AcceptanceBias()
    (found,) = chosen(dynamic(chances), [Signals(0, 0.1, 0.1, 1.0)], [bias], [1])
    log_probs = np.log([0.5, 0.2, 0.1, 0.05]).tolist()
    expected = chances.probabilities(0, log_probs)[0]
    assert found.paths == ((0,),)
    assert bias.expected == pytest.approx(expected)
    assert chances.probabilities(0, log_probs[:1])[0] != pytest.approx(expected, abs=0.01)


def test_a_level_that_could_only_replace_likelier_guesses_is_not_run() -> None:
    uncalibrated = ProbabilityCalibration(slope=[1.0] * 4, offset=[0.0] * 4, follow=[[0.5, 0.2, 0.1, 0.05]] * 4)

    def passes(limit: int, probabilities: Sequence[float]) -> int:
        heads = Guesses(probabilities=probabilities)
        chosen(dynamic(uncalibrated), [Signals(0, 0.1, 0.1, 1.0)], [AcceptanceBias()], [limit], lambda drafting: heads)
        return heads.passes

    even = (0.24, 0.23, 0.22, 0.21)
    assert passes(MAX_NODES, even) > 1
    assert passes(3, even) == 1, "a child of the likeliest has half its chance at most"
    assert passes(1, (0.9, 0.05, 0.02, 0.01)) == 1
    assert passes(3, (0.9, 0.05, 0.02, 0.01)) == 3


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_bank_policies_take_the_banks_own_best_within_a_limit(limit: int) -> None:
    broad = frontier([((0,), 0.5), ((1,), 0.3), ((2,), 0.2), ((0, 0), 0.1)])  # not in the order of its ranks
    bank = small_bank().model_copy(update={"overall": broad})
    (static,) = chosen(
        BestStaticPolicy(bank, FixedCost(COST.of_batch), 8), [Signals(0, 0.1, 0.1, 1.0)], [None], [limit]
    )
    tried = [bank.overall.tree(nodes) for nodes in range(limit + 1)]
    assert static == max(tried, key=lambda tree: bank.overall.gain[tree.nodes] / COST(tree))
    ladder = BankLadderPolicy(bank, FixedCost(COST.of_batch), 0.05)
    calm, wild = ([Signals(0, nats, nats, 1.0)] for nats in (0.1, 1.5))
    assert chosen(ladder, calm, [ladder.start()], [limit])[0].paths == bank.bins[0].tree(limit).paths
    assert chosen(ladder, wild, [ladder.start()], [limit])[0].paths == bank.bins[2].tree(limit).paths


STEPS, TEXTS = 200, 12


def bias(policy: Policy, limit: int, gain_of: Callable[[Topology, np.random.Generator], int]) -> float:
    """The mean acceptance bias after texts of so many steps that go as predicted."""
    found = []
    for text in range(TEXTS):
        generator, bias, gained = np.random.default_rng(text), policy.start(), 0
        for at in range(STEPS):
            (tree,) = chosen(policy, [Signals(at, 0.4, 0.4, 1.0, gained)], [bias], [limit])
            gained = gain_of(tree, generator)
        found.append(bias.log_odds)
    return float(np.mean(found))


@pytest.mark.parametrize("limit", [1, 3, MAX_NODES])
def test_limits_teach_goodput_nothing_wrong(limit: int) -> None:
    predictor = small_predictor()

    def gain_of(tree: Topology, generator: np.random.Generator) -> int:
        lengths = predictor.lengths(tree, -0.4)
        return 1 + int(generator.choice(len(lengths), p=lengths))

    assert abs(bias(goodput(), limit, gain_of)) < 0.2


@pytest.mark.parametrize("limit", [1, 3, MAX_NODES])
def test_limits_teach_the_dynamic_policy_nothing_wrong(limit: int) -> None:
    probabilities = (0.5, 0.2, 0.1, 0.05)
    uncalibrated = ProbabilityCalibration(slope=[1.0] * 4, offset=[0.0] * 4, follow=[list(probabilities)] * 4)

    def gain_of(tree: Topology, generator: np.random.Generator) -> int:
        ranks = generator.choice(5, size=4, p=[*probabilities, 0.15]).tolist()
        return 1 + accepted_length(tree, ranks)

    assert abs(bias(dynamic(uncalibrated), limit, gain_of)) < 0.2
