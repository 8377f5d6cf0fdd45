"""Predictions on made-up traces."""

from dataclasses import replace

from benchmarks.predict import METHODS, NOT_EXPANDED, SHARED, Costs, costs_of, predict
from entmtp import methods
from entmtp.calibration.policy_replay import ExpansionAt
from entmtp.calibration.replay import DYNAMIC, cost_of
from entmtp.heads.interface import Expansion
from tests.helpers.small_cases import Scripted, drawn_trace, small_bank

GPU_LIKE = cost_of("gpu-like")
COSTS = Costs(GPU_LIKE, GPU_LIKE, ["hydra"], "nowhere", "note")
TRACES = [drawn_trace(300, [0.5, 0.15], heads=4, seed=seed) for seed in (1, 2, 3)]


def unsure(position: int) -> Expansion:
    return Scripted([[0.22] * 4] * 4)


EXPANSIONS: list[ExpansionAt] = [unsure] * len(TRACES)


def test_every_table_has_a_cell_per_column() -> None:
    found = predict(TRACES, EXPANSIONS, small_bank(), COSTS)
    (speedups,), (known,) = found.speedups, found.known
    assert len(speedups) == len(METHODS)
    assert all("x [" in cell and cell.endswith(")") for cell in speedups)
    assert [row[0] for row in found.shares] == [*methods.yardsticks(), "known-chances"]
    assert {len(row) for row in found.shares} == {2 + len(SHARED)}
    assert all("% [" in cell for row in found.shares for cell in row[2:] if row[0] != "known-chances")
    assert len(known) == 5
    assert all("x [" in cell for cell in known[:3])
    assert all("% [" in cell for cell in known[3:])


def test_without_a_cost_of_expanding_dynamic_is_not_ranked() -> None:
    found = predict(TRACES, EXPANSIONS, small_bank(), replace(COSTS, expanded=None))
    assert found.speedups[0][METHODS.index(DYNAMIC)] == "–"
    assert {row[2 + SHARED.index(DYNAMIC)] for row in found.shares} == {"–"}
    assert "x [" in found.known[0][0]


def test_a_profile_names_its_machine_and_how_expanding_is_charged() -> None:
    measured = costs_of("h200-vicuna-7b", 1, None)
    assert "NVIDIA H200" in measured.where
    assert "vicuna-7b" in measured.where
    assert (measured.expanded is None) == (measured.note == NOT_EXPANDED)
    ideal = costs_of("flat", 1, None)
    assert ideal.expanded is ideal.chosen
