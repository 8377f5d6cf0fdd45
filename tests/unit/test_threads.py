"""Tests do not slow each other down: threads of one that runs a benchmark would spin in all later ones."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.mark.parametrize("turn", range(2))
def test_threads_that_a_test_sets_are_gone_in_the_next(turn: int) -> None:
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])
    torch.set_num_threads(3)


def test_threads_that_wait_sleep() -> None:
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
