import re

import pytest

from benchmarks.signals import SIGNALS, ablation
from tests.helpers.small_cases import drawn_trace


def test_there_is_a_row_for_each_set_of_signals() -> None:
    fitted, held_out = ([drawn_trace(120, [0.5, 0.2], heads=3, seed=seed + at) for at in range(3)] for seed in (0, 9))
    rows = ablation(fitted, held_out)
    assert [row[0] for row in rows] == list(SIGNALS)
    assert all(0 < float(row[1]) < 2 for row in rows)
    losses = {row[0]: float(row[1]) for row in rows}
    saved = {row[0]: str(row[2]) for row in rows}
    assert saved.pop("entropy") == ""
    for name, text in saved.items():
        value, low, high = (float(number) for number in re.findall(r"-?\d\.\d+", text.replace("+", "")))
        assert value == pytest.approx(losses["entropy"] - losses[name], abs=0.0011), "texts are equally long"
        assert low <= value <= high
