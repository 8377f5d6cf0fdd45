import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entmtp.policies.signals import Ema, SignalTracker, entropy


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=30), st.integers(1, 20))
def test_the_average_is_bias_corrected(values: list[float], window: int) -> None:
    ema = Ema(window)
    for value in values:
        latest = ema.update(value)
    beta = 1 - 1 / window
    weights = [(1 - beta) * beta**age for age in reversed(range(len(values)))]
    by_hand = sum(weight * value for weight, value in zip(weights, values, strict=True)) / (1 - beta ** len(values))
    assert latest == ema.value == pytest.approx(by_hand, abs=1e-9)


def test_a_constant_is_its_own_average_from_the_first_value_on() -> None:
    ema = Ema(8)
    assert ema.value == 0.0
    assert [ema.update(0.7) for _ in range(5)] == pytest.approx([0.7] * 5)


@pytest.mark.parametrize("vocabulary", [2, 96, 50_000])
def test_the_entropy_of_a_uniform_distribution_is_the_log_of_its_size(vocabulary: int) -> None:
    assert float(entropy(torch.full((vocabulary,), 3.0))) == pytest.approx(math.log(vocabulary), rel=1e-5)


def test_the_entropy_of_a_certainty_is_zero_even_in_half_precision() -> None:
    logits = torch.zeros(2, 3, 50, dtype=torch.float16)
    logits[..., 7] = 6e4
    assert entropy(logits).dtype == torch.float32
    assert torch.equal(entropy(logits), torch.zeros(2, 3))


def test_the_entropy_of_known_chances() -> None:
    chances = torch.tensor([0.5, 0.25, 0.25])
    assert float(entropy(chances.log())) == pytest.approx(1.5 * math.log(2), rel=1e-6)


def test_a_step_sees_its_own_entropy_but_only_earlier_acceptance() -> None:
    tracker = SignalTracker(4)
    first = tracker.start_step(0, 1.0)
    assert (first.position, first.entropy, first.entropy_ema, first.accepted_ema) == (0, 1.0, 1.0, 0.0)
    tracker.end_step(3)
    second = tracker.start_step(3, 2.0)
    assert second.entropy_ema == pytest.approx((0.75 * 1.0 + 2.0) / 1.75)
    assert second.accepted_ema == 3.0
