"""Thresholds of the ladder: judged on texts other than those of their rungs, chosen with a penalty, tuned again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from entmtp.calibration.build import make_bank
from entmtp.calibration.ladder_times import ladder_times
from entmtp.calibration.thresholds import halves, one_standard_error, retune, step_starts, tuned_thresholds
from entmtp.policies.ladder import Ladder, best_rungs, build_ladder
from entmtp.policies.rate import Cost
from entmtp.settings import CalibrationSettings, LadderSettings
from entmtp.trees.bank import TreeBank, load_bank
from entmtp.trees.topology import Topology
from entmtp.trees.trace import RankTrace
from tests.helpers.calm_and_wild_texts import CALM, WILD, alternating_text
from tests.helpers.small_cases import provenance, small_bank, trace_of

SETTINGS = CalibrationSettings(max_nodes=12)
HYSTERESIS = LadderSettings().hysteresis


def text(rank_where_calm: int, seed: int) -> RankTrace:
    """One rank where entropy is low and the other one where it is high."""
    wild = np.random.default_rng(seed).random(100) < 0.5
    ranks = [[1 - rank_where_calm if each else rank_where_calm] for each in wild]
    return trace_of(ranks, [WILD if each else CALM for each in wild])


def tuned(traces: Sequence[RankTrace]) -> list[float]:
    starts = step_starts(traces, [Topology.of([(0,)])], window=1)
    return tuned_thresholds(
        traces, starts, lambda tree: 10 + 2.0 * tree.nodes, window=1, hysteresis=0.0, most_rungs=2, fewest_steps=20
    )


def per_node(ms: float) -> Cost:
    """Steps of 10 ms, and what their nodes add."""
    return lambda tree: 10 + ms * tree.nodes + 0.2 * tree.max_depth


def test_a_threshold_that_holds_in_other_texts_too_is_found() -> None:
    (threshold,) = tuned([text(0, seed) for seed in range(6)])
    assert CALM < threshold <= WILD


def test_a_threshold_that_holds_in_its_own_half_alone_is_not() -> None:
    """In one half of the texts entropy says the opposite of what it says in the other."""
    assert tuned([text(int(half), seed) for seed, half in enumerate(halves(8))]) == []


def test_two_texts_are_too_few_to_tell_a_ladder_from_luck() -> None:
    assert tuned([text(0, seed) for seed in range(2)]) == []


def test_a_gain_that_may_be_luck_does_not_pay_for_a_rung() -> None:
    plain = np.array([100.0, 120.0, 90.0, 110.0])
    noisy = plain * [0.94, 1.02, 0.96, 1.01]  # faster by 1.8%, and the error is that too
    surely = plain * [0.96, 0.95, 0.97, 0.96]
    assert one_standard_error(np.array([plain, noisy]), [0, 1]) == 0
    assert one_standard_error(np.array([plain, surely]), [0, 1]) == 1
    assert one_standard_error(np.array([plain, surely, surely * [0.99, 1.005, 0.99, 1.0]]), [0, 1, 2]) == 2
    assert one_standard_error(np.array([plain, surely, surely * [0.98, 1.01, 0.98, 1.01]]), [0, 1, 2]) == 1
    assert one_standard_error(np.array([plain, surely * 0.99, surely]), [0, 1, 1]) == 1


def test_a_single_tree_gives_way_to_two_errors_and_a_ladder_to_one() -> None:
    one = np.array([100.0, 120.0, 90.0, 110.0])
    other = one * [0.97, 1.0, 0.98, 1.0]  # faster by 1.3%, the error is 0.8%
    assert one_standard_error(np.array([one, other]), [0, 1]) == 0
    assert one_standard_error(np.array([one, other]), [1, 2]) == 1


def test_the_error_is_that_of_pairs_so_hard_texts_do_not_hide_a_gain() -> None:
    plain = np.array([10.0, 1000.0, 50.0, 400.0])
    assert one_standard_error(np.array([plain, 0.98 * plain]), [0, 1]) == 1


each_seed = pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])


def held_out_ratio(seed: int, *, telling: bool) -> float:
    """Speedup of the tuned ladder over a single tree, on texts that neither was made from."""
    texts = [alternating_text(1000 * seed + at, telling=telling) for at in range(20)]
    others = [alternating_text(1000 * seed + 500 + at, telling=telling) for at in range(40)]
    cost = per_node(1.0)
    bank = make_bank(texts, provenance(), SETTINGS, cost)
    never = make_bank(texts, provenance(), SETTINGS.model_copy(update={"max_rungs": 1}), cost)
    static = Ladder((), best_rungs(never.bins, cost), bank.entropy_window)
    one, ladder = ladder_times(others, [static, build_ladder(bank, cost)], HYSTERESIS, cost).sum(1)
    return float(one / ladder)


@each_seed
def test_where_entropy_says_nothing_the_ladder_is_as_good_as_one_tree(seed: int) -> None:
    assert held_out_ratio(seed, telling=False) > 0.99


@each_seed
def test_where_entropy_says_something_the_ladder_wins(seed: int) -> None:
    assert held_out_ratio(seed, telling=True) > 1.05


@pytest.fixture(scope="module")
def bank() -> TreeBank:
    texts = [alternating_text(seed, telling=True) for seed in range(16)]
    return make_bank(texts, provenance(), SETTINGS, per_node(1.0))


def test_the_same_cost_tunes_a_bank_to_what_it_is(bank: TreeBank, tmp_path: Path) -> None:
    bank.save(tmp_path / "bank.json")
    back = load_bank(tmp_path / "bank.json")
    assert back == bank
    assert retune(back, per_node(1.0), pytest.fail) == bank


def test_the_more_expensive_nodes_are_the_lower_the_entropy_for_deep_trees_must_be(bank: TreeBank) -> None:
    cheap, expensive = per_node(0.5), per_node(6.0)
    flat, steep = (retune(bank, cost, pytest.fail) for cost in (cheap, expensive))
    assert steep.thresholds[-1] < flat.thresholds[-1]
    assert build_ladder(steep, expensive).rungs[-1] == Topology.root_only()
    assert build_ladder(flat, cheap).rungs[-1] != Topology.root_only()


def test_what_does_not_depend_on_the_ladder_stays(bank: TreeBank) -> None:
    other = retune(bank, per_node(6.0), pytest.fail)
    assert other.model_copy(update={"thresholds": bank.thresholds, "bins": bank.bins}) == bank


def test_a_bank_without_texts_stays_as_it_is_and_says_so() -> None:
    said: list[str] = []
    bank = small_bank()
    assert retune(bank, per_node(6.0), said.append) is bank
    (line,) = said
    assert "'gsm8k' stores no calibration texts" in line
    assert "entmtp calibrate" in line
    assert "\n" not in line
