"""Reports of ``entmtp calibrate``."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from entmtp.calibration.command import _report
from entmtp.trees.probability_calibration import LogLosses, ProbabilityCalibration
from tests.helpers.small_cases import small_bank, small_chances, small_estimating_chances, small_sharp_chances


def reported(chances: ProbabilityCalibration) -> list[str]:
    written = StringIO()
    bank = small_bank().model_copy(update={"chances": chances})
    _report(Path("gsm8k-hydra.json"), bank, Console(file=written, width=300))
    return written.getvalue().splitlines()


@pytest.mark.parametrize(
    ("chances", "choice"),
    [(small_chances(), "does not use"), (small_sharp_chances(), "uses")],
    ids=["plain", "sharpness"],
)
def test_both_log_losses_are_printed_with_the_choice(chances: ProbabilityCalibration, choice: str) -> None:
    losses = LogLosses(texts=5, plain=0.31234, sharpness=0.29876)
    tau, loss = reported(chances.model_copy(update={"held_out": losses}))
    assert tau.startswith("gsm8k-hydra.json: tau by nodes 1: 1.60")
    assert "0.3123 nats" in loss
    assert "0.2988 with the sharpness" in loss
    assert loss.endswith(f"which the bank {choice}")


@pytest.mark.parametrize(
    ("chances", "choice"),
    [(small_sharp_chances(), "does not use"), (small_estimating_chances(), "uses")],
    ids=["sharpness", "estimated_odds"],
)
def test_the_log_loss_with_estimates_is_printed_too(chances: ProbabilityCalibration, choice: str) -> None:
    losses = LogLosses(texts=5, plain=0.31234, sharpness=0.29876, estimated_odds=0.28765)
    *_, by_sharpness, by_estimates = reported(chances.model_copy(update={"held_out": losses}))
    assert by_sharpness.endswith("which the bank uses")
    assert "log-loss 0.2877 nats with the heads' own estimates of acceptance too" in by_estimates
    assert by_estimates.endswith(f"which the bank {choice}")


def test_without_a_comparison_there_is_nothing_to_print_of_it() -> None:
    assert len(reported(small_chances())) == 1
