"""The world of true chances, on texts drawn from those chances."""

import pytest

from entmtp.calibration.known_chances_replay import replay_known_chances
from entmtp.calibration.replay import cost_of
from entmtp.heads.interface import Expansion
from tests.helpers.small_cases import Scripted, drawn_trace, small_bank, small_cost

GPU_LIKE = cost_of("gpu-like")
TRACES = [drawn_trace(200, [0.5, 0.2], heads=4, seed=seed) for seed in (1, 2, 3)]


def expansion_at(position: int) -> Expansion:
    return Scripted([[0.5, 0.2, 0.01, 0.01]] * 4)


def test_a_policy_that_knows_is_between_one_that_finds_out_and_hindsight() -> None:
    found = replay_known_chances(TRACES, [expansion_at] * 3, small_bank(), GPU_LIKE, GPU_LIKE)
    assert found.dynamic is not None
    assert 1 < found.dynamic.speedup.value <= found.best.speedup.value < found.hindsight.speedup.value
    assert found.dynamic.steps == found.best.steps == found.hindsight.steps
    assert found.best.tokens.shape == (3,)
    share = found.dynamic.share_of(found.best)
    assert share.value <= 1 + 1e-9
    assert share.has_interval


def test_expanding_is_charged_only_to_the_policy_that_expands() -> None:
    filled = small_cost()
    expanded = filled.model_copy(update={"narrow_draft_ms": [3.0] * 4, "wide_draft_ms": [3.0] * 4})
    cheap, charged = (
        replay_known_chances(TRACES, [expansion_at] * 3, small_bank(), filled, cost) for cost in (filled, expanded)
    )
    assert cheap.dynamic is not None
    assert charged.dynamic is not None
    assert charged.dynamic.speedup.value < 0.95 * cheap.dynamic.speedup.value
    assert charged.best.speedup.value > charged.dynamic.speedup.value


def test_where_growing_has_no_known_cost_the_dynamic_policy_has_no_speed() -> None:
    found = replay_known_chances(TRACES, [expansion_at] * 3, small_bank(), GPU_LIKE, None)
    assert found.dynamic is None
    assert found.best.speedup.value == pytest.approx(
        replay_known_chances(TRACES, [expansion_at] * 3, small_bank(), GPU_LIKE, GPU_LIKE).best.speedup.value
    )
