from dataclasses import replace

import numpy as np
import pytest
import torch

from entmtp.calibration.fit import StepTable, fit_predictor, quality, step_table
from entmtp.trees.predictor import FEATURES
from entmtp.trees.topology import Topology
from entmtp.trees.trace import RankTrace
from tests.helpers.small_cases import drawn_trace, trace_of

TREES = [Topology.of([(0,), (0, 0)]), Topology.of([(0,), (1,), (0, 0), (0, 1)])]


def mixed_traces(count: int, seed: int) -> list[RankTrace]:
    """Texts in which low entropy means that the heads are right nine times in ten, and high entropy two in ten."""
    traces = []
    for number in range(count):
        calm, wild = (
            drawn_trace(150, [0.9], 3, seed + 2 * number),
            drawn_trace(150, [0.2, 0.1], 3, seed + 2 * number + 1),
        )
        ranks = torch.cat([calm.ranks, wild.ranks])
        entropy = torch.cat([0.3 * calm.entropy, 2 + wild.entropy])
        confidence = torch.cat([calm.confidence, wild.confidence])
        order = torch.arange(300).reshape(10, 30)[torch.randperm(10, generator=torch.Generator().manual_seed(seed))]
        traces.append(RankTrace(ranks[order.flatten()], entropy[order.flatten()], confidence[order.flatten()]))
    return traces


def test_rows_are_the_steps_of_each_tree_with_their_own_signals() -> None:
    trace = trace_of([[0, 0], [0, 5], [7, 7], [0, 0]], entropies=[0.1, 0.2, 0.3, 0.4])
    rows = step_table(
        [replace(trace, confidence=torch.tensor([-1.0, -2.0, -3.0, -4.0])[:, None, None])], TREES[:1], window=8
    )
    assert rows.features[:, FEATURES.index("entropy")].tolist() == pytest.approx([0.1, 0.4])
    assert rows.features[:, FEATURES.index("confidence")].tolist() == pytest.approx([-1.0, -4.0])
    assert rows.features[:, FEATURES.index("accepted_ema")].tolist() == pytest.approx([0.0, 3.0])
    assert rows.ranks.tolist() == [[0, 0], [0, 0]]
    assert rows.text.tolist() == [0, 0]


def test_what_was_fitted_knows_calm_from_wild() -> None:
    predictor = fit_predictor(step_table(mixed_traces(6, seed=0), TREES, 8), ["entropy"])
    calm, wild = (predictor.centre_weights(at) @ predictor.table[:, predictor.index[0,]] for at in (99.0, -99.0))
    assert predictor.weights[0] < 0
    assert calm == pytest.approx(0.9, abs=0.08)
    assert wild == pytest.approx(0.2, abs=0.08)


def test_probabilities_never_rise_along_a_path() -> None:
    predictor = fit_predictor(step_table(mixed_traces(4, seed=3), TREES, 8), FEATURES)
    for path, column in predictor.index.items():
        if len(path) > 1:
            assert (predictor.table[:, column] <= predictor.table[:, predictor.index[path[:-1]]] + 1e-6).all()


def test_a_signal_that_tells_lowers_the_log_loss_and_one_that_does_not_does_not() -> None:
    fitted, scored = (step_table(mixed_traces(6, seed), TREES, 8) for seed in (0, 100))
    telling, silent = (quality(fit_predictor(fitted, [name]), scored, TREES[1]) for name in ("entropy", "confidence"))
    assert telling.log_loss < silent.log_loss - 0.1
    assert telling.within_text > 0.4 > abs(silent.within_text) + 0.2
    assert telling.calibration_error < 0.05


def test_quality_of_a_known_predictor_is_that_by_hand() -> None:
    rows = StepTable(np.zeros((4, len(FEATURES))), np.array([[0], [0], [9], [9]]), np.zeros(4, dtype=np.int64))
    predictor = fit_predictor(rows, ["entropy"])
    assert predictor.table[0, predictor.index[0,]] == pytest.approx(0.5)
    found = quality(predictor, rows, Topology.of([(0,)]), bins=2)
    assert found.log_loss == pytest.approx(np.log(2))
    assert found.within_text == 0


def test_rows_too_few_for_bins_give_one_centre() -> None:
    rows = step_table([drawn_trace(40, [0.5], 2, seed=1)], TREES[:1], 8)
    assert len(fit_predictor(rows, FEATURES).centres) == 1
