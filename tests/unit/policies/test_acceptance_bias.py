import pytest
from hypothesis import given
from hypothesis import strategies as st

from entmtp.policies.acceptance_bias import LEARNING_RATE, AcceptanceBias


def test_a_step_moves_the_bias_by_the_tokens_beyond_the_expected() -> None:
    bias = AcceptanceBias()
    bias.expected = 1.5
    bias.update(gained=4)
    assert bias.log_odds == pytest.approx(LEARNING_RATE * 1.5)
    assert bias.expected is None


def test_a_step_that_guessed_nothing_teaches_nothing() -> None:
    bias = AcceptanceBias()
    bias.update(gained=1)
    assert bias.log_odds == 0


@given(st.lists(st.tuples(st.integers(1, 60), st.floats(0, 60)), max_size=50))
def test_a_bias_stays_within_bounds(steps: list[tuple[int, float]]) -> None:
    bias = AcceptanceBias()
    for gained, expected in steps * 20:
        bias.expected = expected
        bias.update(gained)
    assert abs(bias.log_odds) <= 2
