from collections.abc import Callable
from itertools import product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from entmtp.errors import EntMTPError
from entmtp.policies.base import Policy
from entmtp.policies.ladder import BankLadderPolicy, Ladder, best_static, build_ladder
from entmtp.policies.policy_cost import FixedCost, PolicyCost
from entmtp.policies.rate import Cost
from entmtp.policies.signals import Signals
from entmtp.policies.static import BestStaticPolicy
from entmtp.trees.bank import Frontier, TreeBank
from entmtp.trees.topology import Topology
from tests.helpers.policy_costs import ChangingCost, LinearCost
from tests.helpers.small_cases import frontier, provenance, small_bank, small_chances, small_predictor

CHAIN = [(0,) * depth for depth in range(1, 6)]


def linear(plain: float, per_node: float) -> Cost:
    return lambda topology: plain + per_node * topology.nodes


def rate(bins: list[Frontier], choice: tuple[int, ...], cost: Cost) -> float:
    tokens = sum(one.share * one.gain[nodes] for one, nodes in zip(bins, choice, strict=True))
    return tokens / sum(one.share * cost(one.trees[nodes]) for one, nodes in zip(bins, choice, strict=True))


def best_rate(bins: list[Frontier], cost: Cost) -> float:
    """Best rungs by exhaustive search over all combinations."""
    sizes = [range(len(one.trees)) for one in bins]
    return max(rate(bins, choice, cost) for choice in product(*sizes))


@st.composite
def frontiers(draw: st.DrawFn) -> Frontier:
    chances = sorted(draw(st.lists(st.floats(0.01, 0.99), min_size=0, max_size=5)), reverse=True)
    return frontier(list(zip(CHAIN, chances, strict=False)), draw(st.floats(0, 1)))


@st.composite
def banks(draw: st.DrawFn) -> TreeBank:
    bins = draw(st.lists(frontiers(), min_size=1, max_size=3))
    total = sum(one.share for one in bins)
    assume(total > 0.01)
    overall = draw(frontiers())
    assume(overall.paths)
    return TreeBank(
        provenance=provenance(),
        entropy_window=8,
        thresholds=[float(edge) for edge in range(1, len(bins))],
        # Its gains may be far from the bins', as a replay differs from a sum of chances.
        overall=overall,
        shallower=[],
        predictor=small_predictor(),
        chances=small_chances(),
        bins=[one.model_copy(update={"share": one.share / total}) for one in bins],
    )


@given(banks(), st.floats(0.1, 10), st.floats(0, 3))
def test_no_combination_of_rungs_is_faster(bank: TreeBank, plain: float, per_node: float) -> None:
    cost = linear(plain, per_node)
    rungs = build_ladder(bank, cost).rungs
    found = rate(bank.bins, tuple(rung.nodes for rung in rungs), cost)
    assert found == pytest.approx(best_rate(bank.bins, cost))
    assert all(rung == one.trees[rung.nodes] for rung, one in zip(rungs, bank.bins, strict=True))


@given(banks(), frontiers(), st.floats(0.1, 10), st.floats(0, 3))
def test_no_other_static_tree_is_faster(bank: TreeBank, shallow: Frontier, plain: float, per_node: float) -> None:
    cost = linear(plain, per_node)
    bank = bank.model_copy(update={"shallower": [shallow]})
    best = best_static(bank, cost)
    pairs = [pair for one in bank.by_depth for pair in zip(one.trees, one.gain, strict=True)]
    assert max(gain / cost(tree) for tree, gain in pairs if tree == best) == max(g / cost(tree) for tree, g in pairs)


def test_a_level_that_costs_more_than_it_gains_is_left_out() -> None:
    bank = small_bank().model_copy(update={"shallower": [frontier([((0,), 0.6), ((1,), 0.2)])]})

    def level_is_expensive(topology: Topology) -> float:
        return 10 + topology.nodes + 4 * topology.max_depth

    assert best_static(bank, level_is_expensive).max_depth == 1
    assert build_ladder(small_bank(), level_is_expensive).rungs[1].paths == ((0,), (1,))


def test_calm_text_gets_the_deeper_tree() -> None:
    ladder = build_ladder(small_bank(), linear(30, 6))
    assert ladder.thresholds == (0.4, 0.9)
    assert ladder.entropy_window == 8
    assert [rung.paths for rung in ladder.rungs] == [((0,), (0, 0), (0, 0, 0)), ((0,),), ()]


def test_where_nodes_are_expensive_nothing_is_drafted() -> None:
    assert best_static(small_bank(), linear(10, 10)) == Topology.root_only()
    assert [rung.nodes for rung in build_ladder(small_bank(), linear(10, 10)).rungs] == [0, 0, 0]


def test_a_rung_begins_at_its_threshold() -> None:
    ladder = build_ladder(small_bank(), linear(30, 6))
    assert [ladder.rung_of(value) for value in (0.0, 0.39, 0.4, 0.89, 0.9, 5.0)] == [0, 0, 1, 1, 2, 2]


def test_a_ladder_needs_one_rung_more_than_thresholds() -> None:
    plain = Topology.root_only()
    with pytest.raises(EntMTPError, match=r"^ladder: 1 .* 2 rungs"):
        Ladder((0.5,), (plain,), 8)
    with pytest.raises(EntMTPError, match=r"^ladder: thresholds \(0\.5, 0\.5\) "):
        Ladder((0.5, 0.5), (plain, plain, plain), 8)


BANK_POLICIES: dict[str, Callable[[PolicyCost], Policy]] = {
    "best-static": lambda cost: BestStaticPolicy(small_bank(), cost, 8),
    "ladder": lambda cost: BankLadderPolicy(small_bank(), cost, 0.05),
}


@pytest.mark.parametrize("name", list(BANK_POLICIES))
def test_other_costs_count_once_their_version_is_another(name: str) -> None:
    cost = ChangingCost(lambda batch, context: LinearCost(30, 6))
    policy = BANK_POLICIES[name](cost)

    def nodes(limit: int) -> int:
        calm = Signals(0, 0.0, 0.0, 0.0)
        (choice,) = policy.choose([calm], [policy.start()], [limit], lambda requests: pytest.fail("it drafted"))
        return choice.topology.nodes

    before = nodes(1), nodes(63)
    assert before[1] > before[0] == 1
    cost.current = lambda batch, context: LinearCost(10, 10)
    assert (nodes(1), nodes(63)) == before
    cost.version = 1
    assert (nodes(1), nodes(63)) == (0, 0)


@pytest.mark.parametrize("name", list(BANK_POLICIES))
def test_fixed_costs_learn_nothing_from_steps(name: str) -> None:
    cost = FixedCost(lambda batch, context: LinearCost(30, 6))
    policy, tree = BANK_POLICIES[name](cost), Topology.of([(0,)])
    for _ in range(1000):
        policy.observe([tree], {"verify": 1e6, "draft": 1e6})
    policy.close()
    assert cost(tree) == 36
    assert cost.version == 0
