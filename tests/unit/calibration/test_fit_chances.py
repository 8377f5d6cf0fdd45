"""The calibration of the heads' probabilities, on heads whose true chances are known."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from entmtp.calibration import fit_chances as module
from entmtp.calibration.fit_chances import (
    FOLDS,
    GuessTable,
    fit_chances,
    fit_scaling,
    guess_tables,
    held_out_log_loss,
    total_log_loss,
)
from entmtp.trees.probability_calibration import Candidate, ProbabilityCalibration
from entmtp.trees.trace import MISS, TRACED_RANKS, RankTrace
from tests.helpers.small_cases import drawn_trace, trace_of

ALONE, TIED = (0.5, 0.05, 0.02, 0.01), (0.5, 0.45, 0.02, 0.01)
"""Probabilities of heads in two states: the first guess is equally likely, and has no rival or one."""


def texts_of(true_chances: Sequence[Sequence[float]], seed: int, count: int = 6) -> list[RankTrace]:
    """Texts of 300 positions in either state, where guesses are right with the state's true chances."""
    rng, claimed = np.random.default_rng(seed), np.log([ALONE, TIED])
    traces = []
    for _ in range(count):
        state = rng.integers(0, 2, 300)
        drawn = (rng.random((300, 1)) > np.cumsum(true_chances, axis=1)[state]).sum(1)
        ranks = torch.tensor(np.where(drawn == 4, MISS, drawn)[:, None], dtype=torch.int32)
        confidence = torch.tensor(claimed[state][:, None], dtype=torch.float32)
        traces.append(RankTrace(ranks, torch.zeros(300), confidence))
    return traces


def test_chances_are_the_heads_own_where_those_can_be_believed() -> None:
    generator = torch.Generator().manual_seed(0)
    sure = 0.2 + 0.6 * torch.rand(4000, 1, generator=generator)
    right = torch.rand(4000, 1, generator=generator) < sure
    trace = RankTrace(torch.where(right, 0, 9).int(), torch.zeros(4000), sure[..., None].log())
    chances = fit_chances([trace])
    assert chances.follow[0][0] == pytest.approx(right.float().mean().item(), abs=1e-3)
    for probability in (0.3, 0.5, 0.7):
        assert chances.probabilities(0, [np.log(probability)]) == pytest.approx([probability], abs=0.05)


def test_overconfident_heads_are_believed_less() -> None:
    generator = torch.Generator().manual_seed(1)
    claimed = torch.full((2000, 1, 1), 0.95).log() + 0.01 * torch.rand(2000, 1, 1, generator=generator)
    right = torch.rand(2000, 1, generator=generator) < 0.6
    chances = fit_chances([RankTrace(torch.where(right, 0, 9).int(), torch.zeros(2000), claimed)])
    assert chances.probabilities(0, [np.log(0.95)]) == pytest.approx([0.6], abs=0.05)


def test_heads_that_are_right_more_often_where_they_are_surer_are_calibrated_by_sharpness() -> None:
    chances = fit_chances(texts_of([(0.8, 0.05, 0.02, 0.01), (0.3, 0.28, 0.02, 0.01)], seed=0))
    assert chances.sharpness is not None
    assert chances.held_out is not None
    assert chances.held_out.texts == 6
    assert chances.held_out.sharpness < chances.held_out.plain - 0.01
    first = [chances.probabilities(0, np.log(state).tolist())[0] for state in (ALONE, TIED)]
    assert first == pytest.approx([0.8, 0.3], abs=0.06)
    plain = [chances.plain.probabilities(0, np.log(state).tolist())[0] for state in (ALONE, TIED)]
    assert plain[0] == pytest.approx(plain[1])


def test_where_sharpness_says_nothing_the_plain_calibration_stays() -> None:
    believed = [fit_chances(texts_of([ALONE, TIED], seed)) for seed in range(8)]
    for chances in believed:
        assert chances.held_out is not None
        assert (chances.sharpness is not None) == (chances.held_out.sharpness < chances.held_out.plain)
        assert chances.held_out.sharpness == pytest.approx(chances.held_out.plain, abs=0.005)
    assert sum(chances.sharpness is None for chances in believed) >= 5


def estimating(traces: Sequence[RankTrace], odds: Callable[[RankTrace], torch.Tensor]) -> list[RankTrace]:
    return [replace(trace, estimated_odds=odds(trace).float()) for trace in traces]


def test_heads_that_estimate_well_are_calibrated_by_their_estimate() -> None:
    drawn = torch.Generator().manual_seed(0)
    texts = estimating(
        texts_of([ALONE, TIED], seed=0),
        lambda trace: torch.where(trace.ranks < 4, 3.0, -3.0) + torch.randn(trace.ranks.shape, generator=drawn),
    )
    chances = fit_chances(texts)
    losses = chances.held_out
    assert losses is not None
    assert losses.estimated_odds is not None
    assert losses.estimated_odds < min(losses.plain, losses.sharpness) - 0.03
    assert losses.best == "estimated_odds"
    assert chances.reads_estimates
    good, bad = (chances.probabilities(0, np.log(ALONE).tolist(), estimated_odds=odds)[0] for odds in (3.0, -3.0))
    assert good > 0.7
    assert bad < 0.2
    assert chances.plain == fit_chances(texts_of([ALONE, TIED], seed=0)).plain.model_copy(update={"held_out": losses})


def test_estimates_that_say_nothing_do_not_count() -> None:
    drawn = torch.Generator().manual_seed(0)
    chosen = []
    for seed in range(8):
        texts = estimating(texts_of([ALONE, TIED], seed), lambda trace: torch.randn(trace.ranks.shape, generator=drawn))
        chances = fit_chances(texts)
        assert chances.held_out is not None
        assert chances.held_out.estimated_odds == pytest.approx(chances.held_out.plain, abs=0.005)
        assert chances.reads_estimates == (chances.held_out.best == "estimated_odds")
        chosen.append(chances.held_out.best)
    assert chosen.count("estimated_odds") <= 3


def test_estimates_count_if_all_texts_have_them() -> None:
    texts = texts_of([ALONE, TIED], seed=0)
    estimated = estimating(texts, lambda trace: torch.where(trace.ranks < 4, 9.0, -9.0))
    assert "estimated_odds" in fit_scaling(guess_tables(estimated))
    for traces in (texts, [*estimated[1:], texts[0]]):
        assert list(fit_scaling(guess_tables(traces))) == ["plain", "sharpness"]
    assert fit_chances([*texts[:1], *estimated[1:]]) == fit_chances(texts)


def test_a_text_is_never_scored_by_a_fit_that_saw_a_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[set[int]] = []
    scored: list[set[int]] = []

    def fit(tables: Sequence[GuessTable]) -> dict[Candidate, ProbabilityCalibration]:
        fitted.append({int(text) for table in tables for text in table.text})
        return fit_scaling(tables)

    def loss(chances: ProbabilityCalibration, tables: Sequence[GuessTable]) -> float:
        scored.append({int(text) for table in tables for text in table.text})
        return total_log_loss(chances, tables)

    monkeypatch.setattr(module, "fit_scaling", fit)
    monkeypatch.setattr(module, "total_log_loss", loss)
    held_out_log_loss(guess_tables(texts_of([ALONE, TIED], seed=1, count=7)))
    assert len(fitted) == FOLDS
    assert scored[::2] == scored[1::2], "both candidates are judged on the same texts"
    assert all(seen | unseen == set(range(7)) and not seen & unseen for seen, unseen in zip(fitted, scored[::2]))
    assert sorted(text for each in scored[::2] for text in each) == list(range(7))


def test_the_log_loss_is_that_of_each_guess_by_hand() -> None:
    (table,) = guess_tables([RankTrace(torch.tensor([[1]]), torch.zeros(1), torch.tensor([[[0.6, 0.3]]]).log())])
    own = ProbabilityCalibration(slope=[1.0], offset=[0.0], follow=[[0.5]])
    assert total_log_loss(own, [table]) == pytest.approx(-np.log(1 - 0.6) - np.log(0.3))


EMPTY = RankTrace(torch.zeros(0, 2, dtype=torch.int32), torch.zeros(0), torch.zeros(0, 2, TRACED_RANKS))


@pytest.mark.parametrize("traces", [[drawn_trace(200, [0.5], 2, seed=0)], [trace_of([[0, 1]] * 5), EMPTY]])
def test_one_text_decides_nothing(traces: list[RankTrace]) -> None:
    chances = fit_chances(traces)
    assert chances.sharpness is None
    assert chances.held_out is None


def test_a_depth_that_one_text_alone_reaches_is_no_error() -> None:
    chances = fit_chances([trace_of([[0, 1], [MISS, 0]] * 9), trace_of([[MISS, 0]] * 9)])
    assert chances.held_out is not None
    assert len(chances.slope) == 2


def test_guesses_count_where_the_heads_before_them_were_right() -> None:
    first, second = guess_tables([trace_of([[0, 3], [MISS, 0], [2, 1]]), trace_of([[1, 0]])])
    assert first.text.tolist() == [0, 0, 0, 1]
    assert second.text.tolist() == [0, 0, 1]
    assert second.right.argmax(1).tolist() == [3, 1, 0]
