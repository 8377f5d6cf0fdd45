import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entmtp.errors import EntMTPError
from entmtp.trees.probability_calibration import (
    MAX_ESTIMATED_ODDS,
    LogLosses,
    ProbabilityCalibration,
    SharpnessScaling,
    log_odds,
)
from entmtp.trees.sharpness import RANKS

HALF = ProbabilityCalibration(slope=[1.0, 0.5], offset=[0.0, -1.0], follow=[[0.5, 0.1], [0.4, 0.1]])
SHARP = HALF.model_copy(
    update={"sharpness": SharpnessScaling(slope=[1.0, 0.2], offset=[0.5] * 2, entropy=[0.1] * 2, margin=[-0.3] * 2)}
)
ESTIMATED = HALF.model_copy(
    update={
        "sharpness": SharpnessScaling(
            slope=[1.0, 0.2], offset=[0.5] * 2, entropy=[0.1] * 2, margin=[-0.3] * 2, estimated_odds=[9.0, 0.25]
        )
    }
)
SURE, UNSURE = [[math.log(each) for each in row] for row in ([0.97, 0.01, 0.01, 0.005], [0.3, 0.28, 0.2, 0.1])]


@given(st.floats(1e-6, 1 - 1e-6))
def test_log_odds_are_those_of_the_probability(probability: float) -> None:
    assert log_odds(math.log(probability)) == pytest.approx(math.log(probability / (1 - probability)), abs=1e-3)


@pytest.mark.parametrize("log_prob", [0.0, 1e-9, -1e-30])
def test_certainty_has_bounded_odds(log_prob: float) -> None:
    assert log_odds(log_prob) == pytest.approx(30.0)


@given(st.floats(1e-6, 1.0))
def test_a_slope_of_one_leaves_the_probabilities_unchanged(probability: float) -> None:
    assert HALF.probabilities(0, [math.log(probability)]) == pytest.approx([probability], abs=1e-4)


@pytest.mark.parametrize("chances", [HALF, SHARP, ESTIMATED], ids=["plain", "sharpness", "estimated_odds"])
@given(st.lists(st.floats(-20, 0), min_size=1, max_size=6), st.integers(0, 1), st.floats(-2, 2), st.floats())
def test_a_likelier_token_never_has_the_smaller_probability(
    chances: ProbabilityCalibration, values: list[float], depth: int, shift: float, estimate: float
) -> None:
    found = chances.probabilities(depth, sorted(values, reverse=True), shift, estimate)
    assert found == sorted(found, reverse=True)
    assert all(0 <= chance <= 1 for chance in found)


def test_the_offset_follows_the_sharpness_of_the_distribution() -> None:
    scaling = SharpnessScaling(slope=[9.0, 2.0], offset=[9.0, 0.25], entropy=[9.0, 0.5], margin=[9.0, -1.0])
    chances = HALF.model_copy(update={"sharpness": scaling})
    even = [math.log(1 / RANKS)] * RANKS  # entropy log(RANKS), margin 0
    odds = 2 * log_odds(even[0]) + 0.25 + 0.5 * math.log(RANKS) + 0.1
    assert chances.probabilities(1, even, shift=0.1) == pytest.approx([1 / (1 + math.exp(-odds))] * RANKS)
    led = [math.log(0.8), math.log(0.2)]  # the whole of a vocabulary of two
    odds = 2 * log_odds(led[0]) + 0.25 - 0.5 * (0.8 * led[0] + 0.2 * led[1]) - math.log(4)
    assert chances.probabilities(1, led)[0] == pytest.approx(1 / (1 + math.exp(-odds)))


def test_the_plain_calibration_ignores_sharpness() -> None:
    for row in (SURE, UNSURE):
        assert SHARP.plain.probabilities(0, row) == HALF.probabilities(0, row) != SHARP.probabilities(0, row)
    assert (HALF.fewest_guesses, SHARP.fewest_guesses) == (1, RANKS)


def logit(chance: float) -> float:
    return math.log(chance / (1 - chance))


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_the_offset_follows_what_the_heads_estimate(shift: float) -> None:
    by_sharpness = [logit(chance) for chance in SHARP.probabilities(1, UNSURE, shift)]
    for estimate in (-3.0, 0.0, 2.0):
        found = [logit(chance) for chance in ESTIMATED.probabilities(1, UNSURE, shift, estimate)]
        assert found == pytest.approx([odds + 0.25 * estimate for odds in by_sharpness])


@pytest.mark.parametrize(("estimate", "bound"), [(1e9, 1), (math.inf, 1), (-math.inf, -1), (math.nan, -1)])
def test_estimates_are_bounded(estimate: float, bound: int) -> None:
    at_bound = ESTIMATED.probabilities(1, SURE, estimated_odds=bound * MAX_ESTIMATED_ODDS)
    assert ESTIMATED.probabilities(1, SURE, estimated_odds=estimate) == at_bound


def test_a_calibration_without_their_coefficients_ignores_estimates() -> None:
    assert [chances.reads_estimates for chances in (HALF, SHARP, ESTIMATED, ESTIMATED.plain)] == [False] * 2 + [
        True,
        False,
    ]
    for chances in (HALF, SHARP, ESTIMATED.plain):
        assert chances.probabilities(0, SURE, 0.1, 5.0) == chances.probabilities(0, SURE, 0.1)


def test_a_calibration_that_reads_estimates_says_so_where_there_are_none() -> None:
    with pytest.raises(
        EntMTPError, match=r"^bank: chances\.sharpness\.estimated_odds is set but these heads don't est"
    ):
        ESTIMATED.probabilities(0, SURE)


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ((0.3, 0.3, None), "plain"),
        ((0.3, 0.2, None), "sharpness"),
        ((0.3, 0.4, 0.2), "estimated_odds"),
        ((0.3, 0.2, 0.2), "sharpness"),
        ((0.1, 0.2, 0.1), "plain"),
    ],
)
def test_the_smallest_loss_decides_and_among_equals_the_simplest(
    losses: tuple[float, float, float | None], best: str
) -> None:
    plain, sharpness, estimated_odds = losses
    assert LogLosses(texts=2, plain=plain, sharpness=sharpness, estimated_odds=estimated_odds).best == best


def test_odds_beyond_a_floats_range_have_a_probability() -> None:
    steep = ProbabilityCalibration(slope=[1e6], offset=[0.0], follow=[[0.5]])
    assert steep.probabilities(0, [-20.0, -1e-9]) == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize(
    "changes",
    [
        {"offset": [0.0]},
        {"follow": [[0.5]]},
        {"slope": []},
        {"slope": [-1.0, 1.0]},
        {"follow": [[2.0], [0.0]]},
        {"sharpness": {"slope": [1], "offset": [0], "entropy": [0], "margin": [0]}},
        {"sharpness": {"slope": [1, 1], "offset": [0, 0], "entropy": [0, 0], "margin": [0]}},
        {"sharpness": {"slope": [1, 1], "offset": [0, 0], "entropy": [0, "NaN"], "margin": [0, 0]}},
        {"sharpness": {"slope": [1, -1], "offset": [0, 0], "entropy": [0, 0], "margin": [0, 0]}},
        {"sharpness": {"slope": [1, 1], "offset": [0, 0]}},
        {
            "sharpness": {
                "slope": [1] * 2,
                "offset": [0] * 2,
                "entropy": [0] * 2,
                "margin": [0] * 2,
                "estimated_odds": [0],
            }
        },
        {"held_out": {"texts": 1, "plain": 0.3, "sharpness": 0.3}},
    ],
)
def test_inconsistent_fields_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"slope|offset|follow|sharpness|held_out"):
        ProbabilityCalibration.model_validate(HALF.model_dump() | changes)
