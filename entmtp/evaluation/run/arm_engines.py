"""Engines of a suite's arms: their memory and CUDA graphs are made once and serve all prompts of the suite.

No arm learns from one prompt or repetition for another. Each prompt gets new policies, each request a new policy state,
and no prompt reuses the prefix of an earlier one.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

from entmtp.decoding.engine import Engine
from entmtp.decoding.outputs import Completion
from entmtp.decoding.state import NewCache
from entmtp.evaluation.run.arms import Foresight, Toolbox, drafting_kind, engine_with, make_policy
from entmtp.policies.base import Policy
from entmtp.settings import EngineSettings, SamplingParams

MOST_WARM_RUNS = 5
"""Most untimed runs of a prompt. The first runs new shapes, the next captures them, a later one captures nothing."""

_log = logging.getLogger(__name__)


class ArmEngines:
    """Engines for the arms of a suite, for texts of up to ``tokens`` tokens, prompt and answer together.

    Arms with the same heads take turns on one engine and, on a GPU, its CUDA graphs. Each has a policy of its own. The
    engines take turns on one cache for one request, or one for each draft cache that heads need. All memory is freed
    with this object.
    """

    def __init__(self, suite: str, arms: Sequence[str], tools: Toolbox, tokens: int) -> None:
        self.suite = suite
        self.arms = tuple(arms)
        # A power of two, so that longer prompts seldom need new engines.
        self.context = min(1 << (tokens - 1).bit_length(), tools.backbone.max_context)
        self.settings = EngineSettings.for_one(self.context)
        self._tools = tools
        self._engines: dict[str | None, Engine] = {}  # by kind of heads
        self._policies: dict[str, Policy] = {}
        self._new_cache: NewCache = functools.cache(tools.backbone.new_cache)

    def fits(self, suite: str, arms: Sequence[str], tokens: int) -> bool:
        """Whether these engines serve the suite and the arms, and have room for so many tokens."""
        return (suite, tuple(arms)) == (self.suite, self.arms) and tokens <= self.context

    def set_policies(self, foresight: Foresight | None) -> None:
        """Give each arm a new policy for the next prompt. The controls get the prompt's ``foresight``."""
        self._policies = {arm: make_policy(arm, self._tools, foresight) for arm in self.arms}

    def engine(self, arm: str) -> Engine:
        """The engine of the arm's heads, with the arm's policy."""
        kind, policy = drafting_kind(arm, self._tools), self._policies[arm]
        if kind not in self._engines:
            largest = max(each.max_nodes for each in self._policies.values())
            self._engines[kind] = engine_with(policy, kind, self._tools, self.settings, self._new_cache, largest)
        engine = self._engines[kind]
        if engine.policy is not policy:
            engine.reconfigure(policy, self.settings)
        return engine

    def captures_steps(self, arm: str) -> bool:
        """Whether the arm's steps are captured as CUDA graphs."""
        return self.engine(arm).captures_steps

    def warm_up(self, arm: str, ids: Sequence[int], params: SamplingParams) -> None:
        """Run a request untimed until no step of it captures a CUDA graph or runs for the first time."""
        for _ in range(MOST_WARM_RUNS):
            if not self.complete(arm, ids, params).unsteady_steps:
                return
        _log.warning("%s: after %d untimed runs its steps still need new CUDA graphs", arm, MOST_WARM_RUNS)

    def complete(self, arm: str, ids: Sequence[int], params: SamplingParams) -> Completion:
        """Run a request of the arm, as :func:`complete`."""
        return complete(self.engine(arm), ids, params)


def complete(engine: Engine, ids: Sequence[int], params: SamplingParams) -> Completion:
    """Run a request for a prompt (token ids), alone in ``engine``, to its end.

    Raises:
        EntMTPError: as :meth:`Engine.stream`.
    """
    completion = Completion()
    for _ in engine.stream(ids, params, completion):
        pass
    return completion
