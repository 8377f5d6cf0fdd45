"""Predictions on made-up traces."""

from collections.abc import Sequence

import torch

from benchmarks.predict import METHODS, row
from entmtp.evaluation.replay import cost_of
from entmtp.scheduling.replay import GrowthAt
from tests.small import drawn_trace, small_bank


class Unsure:
    """Heads that give every guess the same small chance."""

    num_heads = 4

    def next(self, parents: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(parents), count, dtype=torch.int64), torch.full((len(parents), count), -1.5)


def test_a_row_has_a_cell_per_method() -> None:
    traces = [drawn_trace(300, [0.5, 0.15], heads=4, seed=seed) for seed in (1, 2, 3)]
    growths: list[GrowthAt] = [lambda at: Unsure()] * len(traces)
    cells = row(traces, growths, small_bank(), cost_of("gpu-like"))
    assert len(cells) == len(METHODS)
    assert all("x [" in cell and cell.endswith(")") for cell in cells)
