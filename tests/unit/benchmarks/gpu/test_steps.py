"""The grid of steps: its order, its profile of what was measured whole, and its floors."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import steps
from benchmarks.gpu.assignment import Assignment
from benchmarks.gpu.steps import GRID, NODES, PROFILE, complete_grid
from benchmarks.lib import timing
from benchmarks.lib.record import read_record
from benchmarks.lib.timing import StepTime
from entmtp.policies.hardware_profile import load_profile
from entmtp.trees.batch import FILLED_SIZES


@pytest.mark.parametrize(
    ("measured", "whole"),
    [
        ([(1, 512)], [(1, 512)]),
        ([(1, 512), (4, 512), (1, 4096)], [(1, 512), (4, 512)]),
        ([(1, 512), (4, 512), (16, 512), (1, 4096)], [(1, 512), (4, 512), (16, 512)]),
        (GRID, sorted(GRID)),
        (GRID[:5], [(1, 512), (1, 4096), (16, 512), (16, 4096)]),
    ],
)
def test_the_profile_is_of_the_largest_grid_that_was_measured_whole(
    measured: list[tuple[int, int]], whole: list[tuple[int, int]]
) -> None:
    assert len(complete_grid(measured)) == len(whole)
    assert complete_grid(measured) == whole


def test_widths_of_captured_steps_are_used_whole() -> None:
    assert set(NODES) <= set(FILLED_SIZES)


def test_all_kernels_are_timed_in_turns_and_the_profile_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "DRY_GRID", ((1, 64),))
    turns: list[tuple[str, tuple[str, int]]] = []

    def timed(its: dict[Any, Any], repetitions: int) -> dict[Any, StepTime]:
        turns.extend(its)
        return timing.timed(its, repetitions)

    monkeypatch.setattr(steps, "timed", timed)
    steps.measure(Assignment("tiny", tmp_path, time.monotonic() + 3600, dry=True))
    record = read_record(tmp_path / "gpu-steps.json")
    (table,) = record.tables
    kernels = list(dict.fromkeys(row[0] for row in table.rows))
    assert "eager" in kernels
    assert [row[:2] for row in table.rows] == [[name, nodes] for nodes in steps.DRY_NODES for name in kernels]
    for row in table.rows:
        step, *floors, over = (float(str(row[table.columns.index(name)])) for name in ("step ms", *steps.FLOORS))
        assert over >= 0.0
        assert step > 0.0
        assert min(floors) >= 0.0
    for at in range(0, len(turns), len(kernels)):  # each tree by all kernels before the next tree
        assert [name for name, _ in turns[at : at + len(kernels)]] == kernels
        assert len({key for _, key in turns[at : at + len(kernels)]}) == 1
    profile = load_profile(str(tmp_path / PROFILE))
    assert (profile.nodes, profile.batches, profile.contexts) == ([0, 1, 7], [1], [64])
    assert profile.measured.kernels == kernels[0]
