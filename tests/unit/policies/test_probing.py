"""Gains of correcting and probing, on a simulated machine without a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from entmtp.intervals import paired_ratio
from entmtp.policies.base import Policy
from entmtp.policies.cost_cache import CostCorrectionFile
from entmtp.policies.hardware_profile import load_profile
from entmtp.policies.online_cost import OnlineStepCost
from entmtp.policies.policy_cost import FixedCost, PolicyCost
from entmtp.policies.probing import BURST, EVERY, SHARE, ProbeBudget
from entmtp.policies.step_cost import BatchedCost, CostTable, StepCost
from tests.helpers.simulated_machine import Steps, dynamic, goodput, machine, simulate, step_cost, times

POLICIES: dict[str, Callable[[PolicyCost], Policy]] = {"goodput": goodput, "dynamic": dynamic}
NOISE = 0.1

each_policy = pytest.mark.parametrize("name", list(POLICIES))


def costs(batch: int) -> list[StepCost]:
    """True costs of steps of 1, 2, ... ``batch`` requests."""
    return [step_cost(each) for each in range(1, batch + 1)]


def too_expensive(batch: int) -> BatchedCost:
    """A first start that was disturbed while trees had their turn: all of them came out 1.6 times too expensive."""
    return machine(*(times(cost, lambda nodes: 1.6 if nodes else 1.0, draft=1.6) for cost in costs(batch)))


def run(
    name: str,
    table: BatchedCost,
    steps: int,
    batch: int = 1,
    seed: int = 0,
    cache: CostCorrectionFile | None = None,
    noise: float = NOISE,
) -> Steps:
    policy = POLICIES[name](OnlineStepCost(table, cache))
    made = simulate(policy, costs(batch)[-1], steps, batch=batch, seed=seed, noise=noise)
    policy.close()
    return made


@each_policy
@pytest.mark.parametrize("batch", [1, 4])
def test_a_table_with_trees_too_expensive_recovers_within_500_steps(name: str, batch: int) -> None:
    right, stuck = (run(name, table, 900, batch) for table in (machine(*costs(batch)), too_expensive(batch)))
    assert stuck.rate(500) > 0.97 * right.rate(500)


@pytest.mark.parametrize(
    ("name", "spread", "noise", "steps"),
    [
        ("goodput", 0.0, NOISE, 1000),
        pytest.param("dynamic", 0.0, NOISE, 1000, marks=pytest.mark.slow),
        ("goodput", 0.6, 0.0, 400),
        ("dynamic", 0.6, 0.0, 400),
    ],
)
def test_right_costs_lose_at_most_1_percent_to_probes(
    name: str, spread: float, noise: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short run whose measurement was disturbed loses little too. Without noise only probes cost time."""
    table = machine(*costs(1), spread=spread)
    probing = [run(name, table, steps, seed=seed, noise=noise).rate() for seed in range(5)]
    monkeypatch.setattr(ProbeBudget, "due", False)
    never = [run(name, table, steps, seed=seed, noise=noise).rate() for seed in range(5)]
    low = paired_ratio(np.array(probing), np.array(never)).estimate().low
    assert low is not None
    assert low > 0.99


@each_policy
def test_corrections_are_there_after_a_restart(name: str, tmp_path: Path) -> None:
    cache = CostCorrectionFile(tmp_path / "a.learnt.json")
    right = run(name, machine(*costs(1)), 300)
    run(name, too_expensive(1), 1000, cache=cache)
    again = run(name, too_expensive(1), 300, seed=1, cache=cache)
    assert again.rate() > 0.97 * right.rate()


@each_policy
def test_a_correction_of_another_table_is_ignored(name: str, tmp_path: Path) -> None:
    cache = CostCorrectionFile(tmp_path / "a.learnt.json")
    run(name, too_expensive(1), 1000, cache=cache)
    assert not OnlineStepCost(machine(*costs(1)), cache).filter_of(1).shape.any()


@each_policy
def test_a_machine_that_slows_down_as_a_whole_chooses_as_before(name: str) -> None:
    def slower(step: int, batch: int, context: int) -> StepCost:
        return times(step_cost(), lambda nodes: 2.0, draft=2.0) if step >= 500 else step_cost()

    as_ever, slow = (
        simulate(POLICIES[name](OnlineStepCost(machine(step_cost()))), truth, 1000, noise=NOISE)
        for truth in (step_cost(), slower)
    )
    assert slow.rate(550) == pytest.approx(as_ever.rate(550) / 2, rel=0.02)


@each_policy
@pytest.mark.parametrize("factor", [1.6, 1 / 1.6])
def test_one_size_that_is_wrong_is_found(name: str, factor: float) -> None:
    """The size that is used most takes longer than was measured, or less time."""
    truth = step_cost()
    usual = simulate(POLICIES[name](OnlineStepCost(machine(truth))), truth, 300, noise=NOISE)
    sizes = np.array(truth.nodes)
    wrong = int(sizes[np.abs(sizes - np.median(usual.nodes[usual.nodes > 0])).argmin()])
    table = times(truth, lambda nodes: 1 / factor if nodes == wrong else 1.0)
    right, found = (
        simulate(POLICIES[name](OnlineStepCost(machine(cost))), truth, 900, noise=NOISE) for cost in (truth, table)
    )
    assert found.rate(500) > 0.97 * right.rate(500)


@each_policy
def test_trees_follow_the_context(name: str) -> None:
    """On an H200, 63 nodes cost 1.37 plain steps after 512 tokens and 1.61 after 4,096."""
    profile = load_profile("h200-vicuna-7b")
    ends = [512, 4096]
    table = CostTable(contexts=ends, costs=[profile.cost(1, context) for context in ends])

    def truth(step: int, batch: int, context: int) -> StepCost:
        return table.at(context)

    def nodes(known: CostTable | StepCost, context: Callable[[int], int]) -> list[int]:
        found: list[int] = simulate(
            POLICIES[name](FixedCost(known.of_batch)), truth, 100, context=context
        ).nodes.tolist()
        return found

    assert nodes(table, lambda step: 512) == nodes(table.costs[0], lambda step: 512)
    assert nodes(table, lambda step: 4096) == nodes(table.costs[1], lambda step: 4096)
    if name == "dynamic":  # a bank's largest tree pays at both ends
        nodes_after_longer_context = nodes(table, lambda step: 160 if step < 50 else 4096)
        assert np.mean(nodes_after_longer_context[50:]) < 0.8 * np.mean(nodes_after_longer_context[:50])


def test_a_run_is_the_same_again() -> None:
    one, other = (run("dynamic", too_expensive(1), 300, seed=3) for _ in range(2))
    assert one.nodes.tolist() == other.nodes.tolist()


def test_the_budget_is_a_share_of_the_time() -> None:
    budget, spent, total = ProbeBudget(), 0.0, 0.0
    for _ in range(20_000):
        excess = 3.0 if budget.due else None
        budget.spend(10.0, excess)
        spent, total = spent + (excess or 0.0), total + 10.0
    assert spent <= SHARE * total + BURST * 10.0 + 3.0
    assert spent > 0.9 * SHARE * total


def test_a_probe_follows_another_at_once_and_a_look_comes_now_and_then() -> None:
    budget, looks = ProbeBudget(), []
    for step in range(4 * EVERY + 1):
        if budget.due:
            looks.append(step)
        budget.spend(10.0, None)
    assert looks == [EVERY * at for at in range(1, 5)], "at first nothing is known of this machine's steps"
    budget.spend(10.0, 0.1)
    assert budget.due


def test_what_is_saved_up_is_no_more_than_a_burst() -> None:
    budget = ProbeBudget()
    for _ in range(EVERY * 1000):
        budget.spend(10.0, None)
    probes = 0
    while budget.due and probes < 1000:
        budget.spend(10.0, 5.0)
        probes += 1
    assert probes <= 2 * BURST + 1
