"""Sharpness against the whole distribution, which it never sees."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entmtp.trees.sharpness import MAX_MARGIN, RANKS, Sharpness
from entmtp.trees.trace import TRACED_RANKS


@st.composite
def distributions(draw: st.DrawFn) -> list[float]:
    """Log-probabilities of a whole draft vocabulary, likeliest first."""
    logits = draw(st.lists(st.floats(-12, 12), min_size=1, max_size=40))
    total = math.log(sum(map(math.exp, logits)))
    return sorted((logit - total for logit in logits), reverse=True)


def entropy(log_probs: list[float]) -> float:
    return -sum(math.exp(value) * value for value in log_probs)


@given(distributions())
def test_entropy_is_a_lower_bound_that_small_vocabularies_reach(log_probs: list[float]) -> None:
    found = Sharpness.of(log_probs).entropy
    assert -1e-9 <= found <= entropy(log_probs) + 1e-9
    if len(log_probs) <= RANKS:
        assert found == pytest.approx(entropy(log_probs), abs=1e-9)


@given(st.lists(st.floats(-8, 0), min_size=RANKS, max_size=RANKS), st.integers(0, 400))
def test_entropy_is_exact_where_all_others_are_as_likely_as_the_last(logits: list[float], others: int) -> None:
    logits = sorted(logits, reverse=True)
    whole = [*logits, *[logits[-1]] * others]
    total = math.log(sum(map(math.exp, whole)))
    log_probs = [value - total for value in whole]
    assert Sharpness.of(log_probs).entropy == pytest.approx(entropy(log_probs), abs=1e-9)


@given(distributions(), st.integers(RANKS, 40))
def test_more_guesses_than_are_read_change_nothing(log_probs: list[float], count: int) -> None:
    assert Sharpness.of(log_probs[:count]) == Sharpness.of(log_probs)


@given(distributions())
def test_margin_is_the_lead_of_the_first_guess(log_probs: list[float]) -> None:
    lead = log_probs[0] - log_probs[1] if len(log_probs) > 1 else math.inf
    assert Sharpness.of(log_probs).margin == pytest.approx(min(lead, MAX_MARGIN))


def test_a_margin_has_a_bound() -> None:
    assert Sharpness.of([-1e-9, -21.0, -25.0, -25.0]).margin == MAX_MARGIN


@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf])
def test_sharpness_is_finite_whatever_the_heads_return(bad: float) -> None:
    for log_probs in ([bad] * RANKS, [-0.1, bad, bad, bad], [bad]):
        assert all(map(math.isfinite, Sharpness.of(log_probs)))


def test_a_trace_has_all_guesses_that_are_read() -> None:
    assert RANKS <= TRACED_RANKS
