import pytest
from hypothesis import given
from hypothesis import strategies as st

from entmtp.policies.acceptance_bias import LEARNING_RATE, Belief


def test_a_step_moves_the_belief_by_what_it_gained_beyond_the_expected() -> None:
    belief = Belief()
    belief.expected = 1.5
    belief.learn(gained=4)
    assert belief.shift == pytest.approx(LEARNING_RATE * 1.5)
    assert belief.expected is None


def test_a_step_that_guessed_nothing_teaches_nothing() -> None:
    belief = Belief()
    belief.learn(gained=1)
    assert belief.shift == 0


@given(st.lists(st.tuples(st.integers(1, 60), st.floats(0, 60)), max_size=50))
def test_a_belief_stays_within_bounds(steps: list[tuple[int, float]]) -> None:
    belief = Belief()
    for gained, expected in steps * 20:
        belief.expected = expected
        belief.learn(gained)
    assert abs(belief.shift) <= 2
