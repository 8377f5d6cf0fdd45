import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entmtp.trees.probability_calibration import ProbabilityCalibration, log_odds

HALF = ProbabilityCalibration(slope=[1.0, 0.5], offset=[0.0, -1.0], follow=[[0.5, 0.1], [0.4, 0.1]])


@given(st.floats(1e-6, 1 - 1e-6))
def test_log_odds_are_those_of_the_probability(probability: float) -> None:
    assert log_odds(math.log(probability)) == pytest.approx(math.log(probability / (1 - probability)), abs=1e-3)


@pytest.mark.parametrize("log_prob", [0.0, 1e-9, -1e-30])
def test_certainty_has_bounded_odds(log_prob: float) -> None:
    assert log_odds(log_prob) == pytest.approx(30.0)


@given(st.floats(1e-6, 1.0))
def test_a_slope_of_one_leaves_the_probabilities_unchanged(probability: float) -> None:
    assert HALF.probability(0, math.log(probability)) == pytest.approx(probability, abs=1e-4)


@given(st.floats(-20, 0), st.floats(-20, 0), st.integers(0, 1))
def test_a_likelier_token_never_has_the_smaller_probability(one: float, other: float, depth: int) -> None:
    low, high = sorted((one, other))
    assert 0 < HALF.probability(depth, (low)) <= HALF.probability(depth, (high)) <= 1


@pytest.mark.parametrize(
    "changes",
    [{"offset": [0.0]}, {"follow": [[0.5]]}, {"slope": []}, {"slope": [-1.0, 1.0]}, {"follow": [[2.0], [0.0]]}],
)
def test_inconsistent_fields_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"slope|offset|follow"):
        ProbabilityCalibration.model_validate(HALF.model_dump() | changes)
