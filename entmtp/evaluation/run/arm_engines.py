"""The engines of a suite's arms: memory and CUDA graphs are made once, and serve all of the suite's prompts.

What arms could learn from one prompt for another, or from one repetition for the next, is kept apart: each prompt gets
policies of its own, a policy's state begins anew with each request, and no prompt is read from the text of an earlier
one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from entmtp.decoding.engine import Engine
from entmtp.decoding.outputs import Completion
from entmtp.evaluation.run.arms import Foresight, Toolbox, make_engine, make_policy
from entmtp.settings import EngineSettings, SamplingParams

MOST_WARM_RUNS = 5
"""Untimed runs of a prompt, at most: one meets what is new, one captures it, one shows that all graphs are there."""

_log = logging.getLogger(__name__)


class ArmEngines:
    """One engine for each arm of a suite, for texts of up to ``tokens`` tokens, prompt and answer together.

    Engines share the model and the heads. Each has a cache for one request and, on a GPU, graphs of its own, whose
    memory is free once nothing refers to this object.
    """

    def __init__(self, suite: str, arms: Sequence[str], tools: Toolbox, tokens: int) -> None:
        self.suite = suite
        self.arms = tuple(arms)
        # Powers of two, so that longer prompts seldom need other engines.
        context = min(1 << (tokens - 1).bit_length(), tools.backbone.max_context)
        self.settings = EngineSettings(slots=1, context=context, prefix_reuse=False)
        self._tools = tools
        self._engines: dict[str, Engine] = {}

    def fits(self, suite: str, arms: Sequence[str], tokens: int) -> bool:
        """Whether these engines are those of the suite and the arms, and have room for so many tokens."""
        return (suite, tuple(arms)) == (self.suite, self.arms) and tokens <= self.settings.context

    def begin(self, foresight: Foresight | None) -> None:
        """Gives each arm its policy for the next prompt; the controls know that one's ``foresight``."""
        for arm in self.arms:
            if arm in self._engines:
                self._engines[arm].reconfigure(make_policy(arm, self._tools, foresight), self.settings)
            else:
                self._engines[arm] = make_engine(arm, self._tools, foresight, self.settings)

    def captures_steps(self, arm: str) -> bool:
        """Whether steps of the arm become CUDA graphs."""
        return self._engines[arm].captures_steps

    def warm_up(self, arm: str, ids: Sequence[int], params: SamplingParams) -> None:
        """Runs a request untimed until each of its steps takes what it always will: its graphs are all there."""
        for _ in range(MOST_WARM_RUNS):
            if not self.complete(arm, ids, params).unsteady_steps:
                return
        _log.warning("%s: after %d untimed runs its steps still need new CUDA graphs", arm, MOST_WARM_RUNS)

    def complete(self, arm: str, ids: Sequence[int], params: SamplingParams) -> Completion:
        """Runs a request of the arm, as :func:`complete`."""
        return complete(self._engines[arm], ids, params)


def complete(engine: Engine, ids: Sequence[int], params: SamplingParams) -> Completion:
    """Runs a request for a prompt (token ids), alone in ``engine``, to its end.

    Raises:
        EntMTPError: as :meth:`Engine.stream`.
    """
    completion = Completion()
    for _ in engine.stream(ids, params, completion):
        pass
    return completion
