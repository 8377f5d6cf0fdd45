"""Messages of a benchmark about options that it refuses, word by word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from entmtp.errors import EntMTPError
from entmtp.evaluation.run.arms import check_acceptance
from entmtp.evaluation.run.placement import Node, ResourceRequest, choose_placement
from entmtp.evaluation.run.planning import validate
from entmtp.methods import check_arms

CPUS = [Node("head", "head", 4.0, 0, "")]
GPUS = [Node("one", "one", 16.0, 1.0, "T4"), Node("eight", "eight", 64.0, 8.0, "H100")]
EVERY_ARM = (
    "autoregressive, medusa, medusa-best, hydra, hydra-best, native, native-best, entmtp, entmtp-goodput,"
    " entmtp-dynamic, entmtp-transfer, entmtp-mixed, always-big, random, bank-oracle, hindsight, medusa-typical"
)
FOLLOWS = (
    "follows the model's own text, which typical acceptance does not write; leave it out, or use a lossless profile"
)

PLACEMENTS: list[tuple[Sequence[Node], dict[str, Any], str]] = [
    (CPUS, {"workers": 0}, "workers: 0 is not accepted; give at least 1"),
    (CPUS, {"gpus_per_worker": 0}, "gpus_per_worker: 0 is not accepted; give 1, or a fraction such as 0.5"),
    (CPUS, {"gpus_per_worker": -1}, "gpus_per_worker: -1 is not accepted; give 1, or a fraction such as 0.5"),
    (
        CPUS,
        {"gpus_per_worker": float("nan")},
        "gpus_per_worker: nan is not accepted; give 1, or a fraction such as 0.5",
    ),
    (CPUS, {"gpus_per_worker": 1.5}, "gpus_per_worker: 1.5 is not accepted; give a whole number, or less than 1"),
    (CPUS, {"cpus_per_worker": 0}, "cpus_per_worker: 0 is not accepted; give at least 1"),
    (CPUS, {"cpus_per_worker": 5}, "cpus_per_worker: 5 is more than any node has; give at most 4"),
    (CPUS, {"gpus_per_worker": 1}, "gpus_per_worker: 1 is more than any node has; leave it out to run on CPUs"),
    (GPUS, {"gpus_per_worker": 9}, "gpus_per_worker: 9 is more than any node has; leave it out to run on CPUs"),
    (CPUS, {"device": "tpu"}, "device: 'tpu' is unknown; choose one of auto, cpu, cuda"),
    (
        CPUS,
        {"device": "cuda"},
        "device: 'cuda' needs a GPU and no node has one; add a node with a GPU, or give --device cpu",
    ),
    (
        CPUS,
        {"accelerator": "H100"},
        "accelerator: 'H100' needs a GPU and no node has one; add a node with a GPU, or give --device cpu",
    ),
    (GPUS, {"accelerator": "B200"}, "accelerator: 'B200' is on no node; the cluster's GPUs are H100, T4"),
    (
        GPUS,
        {"cpus_per_worker": 2},
        "cpus_per_worker: 2 is for workers without a GPU; leave it out (jobs/benchmark.py takes it with --device cpu)",
    ),
    ([Node("head", "head", 0.0, 0, "")], {}, "cluster: no node offers a CPU; start one with 'ray start --num-cpus N'"),
]


@pytest.mark.parametrize(("nodes", "requested", "message"), PLACEMENTS)
def test_resources_that_no_node_can_give(nodes: Sequence[Node], requested: dict[str, Any], message: str) -> None:
    with pytest.raises(EntMTPError) as refusal:
        choose_placement(nodes, ResourceRequest(**requested))
    assert str(refusal.value) == message


@pytest.mark.parametrize("arm", ["eagle", "oracle"])
def test_an_arm_that_there_is_not(arm: str) -> None:
    with pytest.raises(EntMTPError) as refusal:
        check_arms(["medusa", arm])
    assert str(refusal.value) == f"arm: '{arm}' is unknown; choose from {EVERY_ARM}"


def test_arms_that_know_the_models_text_where_another_is_written() -> None:
    with pytest.raises(EntMTPError) as refusal:
        check_acceptance(["hydra", "bank-oracle"], "typical")
    assert str(refusal.value) == f"arm: 'bank-oracle' {FOLLOWS}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profile": "paper", "arms": ["random"]}, f"arm: 'random' {FOLLOWS}"),
        (
            {"overrides": {"repetitions": 0}},
            "repetitions: 0 is not accepted: input should be greater than or equal to 1",
        ),
    ],
)
def test_options_that_are_refused_before_anything_is_loaded(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"profile": "full", "suites": [], "arms": [], "overrides": {}}
    with pytest.raises(EntMTPError) as refusal:
        validate(**(given | changes))
    assert str(refusal.value) == message
