"""Engines and requests for tests with injected faults, and the check of their outputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch

from entmtp.decoding.engine import Engine
from entmtp.decoding.graphs import Graphs
from entmtp.decoding.outputs import Completion, RequestOutput
from entmtp.decoding.request import Request
from entmtp.decoding.sampling import Sampler
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.policies.base import Policy
from entmtp.policies.goodput import GoodputPolicy
from entmtp.policies.ladder import Ladder, LadderPolicy
from entmtp.policies.policy_cost import FixedCost
from entmtp.policies.static import SequencePolicy, StaticPolicy
from entmtp.settings import EngineSettings, SamplingParams
from tests.helpers.small_cases import small_cost, small_dynamic_policy, small_predictor, small_prompt
from tests.helpers.taped_graphs import Taped
from tests.helpers.tiny_models import TREES

POLICIES: dict[str, Callable[[], Policy]] = {
    "plain": lambda: StaticPolicy(TREES["root"], 8),
    "static": lambda: StaticPolicy(TREES["bushy"], 8),
    "sequence": lambda: SequencePolicy([TREES["bushy"], TREES["root"], TREES["chain"], TREES["wide"]], 8),
    "ladder": lambda: LadderPolicy(Ladder((0.5, 1.5), (TREES["bushy"], TREES["chain"], TREES["root"]), 8), 0.05),
    "goodput": lambda: GoodputPolicy(small_predictor(), FixedCost(lambda batch, context: small_cost()), 8),
    "dynamic": small_dynamic_policy,
}
SLOTS = 3
REQUESTS: list[tuple[list[int], dict[str, Any]]] = [
    (small_prompt(3, seed=1), {"max_tokens": 2}),  # ends first: the others move to the first slots
    (small_prompt(9, seed=2), {"max_tokens": 6, "logprobs": 2}),
    (small_prompt(5, seed=3), {"max_tokens": 5, "temperature": 0.9, "seed": 4, "repetition_penalty": 1.2}),
    (small_prompt(9, seed=2), {"max_tokens": 4}),  # shares a prefix with the second
]
ERRORS: dict[str, Callable[[], Exception]] = {
    "memory": lambda: torch.OutOfMemoryError("CUDA out of memory"),
    "other": lambda: ValueError("broken"),
}


def engine_of(backbone: Backbone, heads: DraftHeads, policy: str, captured: bool = False) -> Engine:
    sizes: dict[str, Any] = {"slots": SLOTS, "context": 48, "prefill_tokens": 6}
    engine = Engine(backbone, heads, POLICIES[policy](), EngineSettings.parse(**sizes))
    if captured:
        engine.runner.state.graphs = Graphs(Taped())
    return engine


def serve(engine: Engine, around: Callable[[int], AbstractContextManager[object]] | None = None) -> list[Completion]:
    """Serve the requests to their ends; ``around`` makes the context that step 0, 1, ... of the engine runs in."""
    done = [
        engine.submit(Request(str(at), prompt, SamplingParams.parse(**({"temperature": 0.0} | params))))
        for at, (prompt, params) in enumerate(REQUESTS)
    ]
    for step in itertools.takewhile(lambda _: not engine.idle, itertools.count()):
        with around(step) if around else nullcontext():
            engine.step()
    return done


def run(engine: Engine) -> list[RequestOutput]:
    outputs = []
    while not engine.idle:
        outputs += engine.step()
    return outputs


def check(engine: Engine, done: Sequence[Completion], expected: Sequence[Completion], where: str) -> int:
    """Check that no answer has a wrong token and all slots are free; returns how many ended with an error."""
    for one, right in zip(done, expected, strict=True):
        if one.finish_reason == "error":
            assert one.error, where
            assert one.tokens == right.tokens[: len(one.tokens)], where
        else:
            assert one.tokens == right.tokens, where
            assert [each.chosen for each in one.logprobs] == pytest.approx(
                [each.chosen for each in right.logprobs], abs=1e-4
            )
    assert engine.scheduler.slots.free == SLOTS
    return sum(one.finish_reason == "error" for one in done)


MARKED = SamplingParams(temperature=0.5, seed=3, max_tokens=9, logprobs=7, repetition_penalty=1.3, stop=["never"])
"""Parameters of the faulty request: it is sampled, with a penalty, a stop string and log-probabilities."""


def broken_sampler(name: str, error: Exception) -> Callable[..., Any]:
    real = getattr(Sampler, name)

    def broken(self: Sampler, *args: Any) -> Any:
        if self.params.logprobs == MARKED.logprobs:
            raise error
        return real(self, *args)

    return broken
