"""Faults of one request, or of one moment, harm no other: injected at every point of prompts, steps and captures."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from entmtp.decoding import engine as engine_module
from entmtp.decoding import step as step_module
from entmtp.decoding.completion import Completion
from entmtp.decoding.engine import Engine
from entmtp.decoding.faults import is_out_of_memory
from entmtp.decoding.graphs import Graphs
from entmtp.decoding.progress import Progress
from entmtp.decoding.request import Request
from entmtp.decoding.sampling import Sampler
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.scheduling.dynamic import DynamicPolicy
from entmtp.scheduling.goodput import GoodputPolicy
from entmtp.scheduling.ladder import Ladder
from entmtp.scheduling.policies import LadderPolicy, Policy, SequencePolicy, StaticPolicy
from entmtp.settings import EngineSettings, SamplingParams
from entmtp.trees.topology import Topology
from tests.faults import FaultAt
from tests.prefix import prefix_heads
from tests.small import small_backbone, small_chances, small_cost, small_heads, small_predictor, small_prompt
from tests.taped import Taped
from tests.tiny import TREES, greedy

POLICIES: dict[str, Callable[[], Policy]] = {
    "plain": lambda: StaticPolicy(TREES["root"], 8),
    "static": lambda: StaticPolicy(TREES["bushy"], 8),
    "sequence": lambda: SequencePolicy([TREES["bushy"], TREES["root"], TREES["chain"], TREES["wide"]], 8),
    "ladder": lambda: LadderPolicy(Ladder((0.5, 1.5), (TREES["bushy"], TREES["chain"], TREES["root"]), 8), 0.05),
    "goodput": lambda: GoodputPolicy(small_predictor(), lambda batch: small_cost(), 8),
    "dynamic": lambda: DynamicPolicy(small_predictor(), small_chances(), lambda batch: small_cost(), 8),
}
SLOTS = 3
REQUESTS: list[tuple[list[int], dict[str, Any]]] = [
    (small_prompt(3, seed=1), {"max_tokens": 3}),  # the first to end: the others move to the front
    (small_prompt(9, seed=2), {"max_tokens": 8, "logprobs": 2}),
    (small_prompt(5, seed=3), {"max_tokens": 7, "temperature": 0.9, "seed": 4, "repetition_penalty": 1.2}),
    (small_prompt(9, seed=2), {"max_tokens": 6}),  # begins as the second does
]
ERRORS: dict[str, Callable[[], Exception]] = {
    "memory": lambda: torch.OutOfMemoryError("CUDA out of memory"),
    "other": lambda: ValueError("broken"),
}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """Runs on operators alone, so that there is a point at each of them."""
    return small_backbone(kernels="eager", num_hidden_layers=1)


@pytest.fixture(scope="module")
def heads(backbone: Backbone) -> DraftHeads:
    return small_heads("hydra", backbone)


def engine_of(backbone: Backbone, heads: DraftHeads, policy: str, captured: bool = False) -> Engine:
    sizes: dict[str, Any] = {"slots": SLOTS, "context": 48, "prefill_tokens": 6}
    engine = Engine(backbone, heads, POLICIES[policy](), EngineSettings.parse(**sizes))
    if captured:
        engine._memory()[0].graphs = Graphs(Taped())
    return engine


def serve(engine: Engine) -> list[Completion]:
    done = [
        engine.submit(Request(str(at), prompt, SamplingParams.parse(**({"temperature": 0.0} | params))))
        for at, (prompt, params) in enumerate(REQUESTS)
    ]
    run(engine)
    return done


def run(engine: Engine) -> list[Progress]:
    progress = []
    while not engine.idle:
        progress += engine.step()
    return progress


def check(engine: Engine, done: Sequence[Completion], expected: Sequence[Completion], where: str) -> int:
    """Nobody has a wrong token, slots are free and clean; how many ended with an error."""
    for one, right in zip(done, expected, strict=True):
        if one.finish_reason == "error":
            assert one.error, where
            assert one.tokens == right.tokens[: len(one.tokens)], where
        else:
            assert one.tokens == right.tokens, where
            assert [each.chosen for each in one.logprobs] == pytest.approx([each.chosen for each in right.logprobs], abs=1e-4)
    assert engine._memory()[1].free == SLOTS
    return sum(one.finish_reason == "error" for one in done)


def walk(
    backbone: Backbone, heads: DraftHeads, policy: str, error: str, captured: bool, points: Callable[[int], list[int]]
) -> list[int]:
    """Serves the requests once for each point, with the fault there; how many requests each has ended."""
    expected = serve(engine_of(backbone, heads, policy, captured))
    assert [one.finish_reason for one in expected] == ["length"] * len(REQUESTS)
    ended = []
    for at in points(_count(backbone, heads, policy, error, captured)):
        engine = engine_of(backbone, heads, policy, captured)
        with FaultAt(at, ERRORS[error]()) as fault:
            done = serve(engine)
        where = f"{error} at {at}, {fault.where}"
        ended.append(check(engine, done, expected, where))
        assert engine._memory()[0].graphs.refused is None, where
        assert check(engine, serve(engine), expected, f"after {where}") == 0
    return ended


def _count(backbone: Backbone, heads: DraftHeads, policy: str, error: str, captured: bool) -> int:
    engine = engine_of(backbone, heads, policy, captured)
    with FaultAt(None, ERRORS[error]()) as fault:
        serve(engine)
    return fault.count


def some(count: int) -> list[int]:
    return sorted(random.Random(count).sample(range(count), 24))


def every(count: int) -> list[int]:
    return list(range(count))


CASES = [(policy, error, captured) for policy in POLICIES for error in ERRORS for captured in (False, True)]


@pytest.mark.parametrize(("policy", "error", "captured"), CASES)
def test_a_fault_at_any_point_harms_no_other(
    policy: str, error: str, captured: bool, backbone: Backbone, heads: DraftHeads
) -> None:
    ended = walk(backbone, heads, policy, error, captured, some)
    assert max(ended) <= 2  # two only where their slots were just being exchanged


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "error", "captured"), CASES)
def test_a_fault_at_every_point_harms_no_other(
    policy: str, error: str, captured: bool, backbone: Backbone, heads: DraftHeads
) -> None:
    assert max(walk(backbone, heads, policy, error, captured, every)) <= 2
