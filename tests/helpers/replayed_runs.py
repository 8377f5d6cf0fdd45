"""Comparison of real runs with their replay on the texts of a calibration."""

from collections.abc import Sequence
from pathlib import Path

import torch

from entmtp.calibration.build import expansions_of, traces_of
from entmtp.calibration.policy_replay import replay_steps
from entmtp.evaluation.run.arms import Toolbox, make_engine
from entmtp.settings import EngineSettings


def check_replay_is_real(
    arm: str, kind: str, tools: Toolbox, text: Path, prompts: Sequence[list[int]], new_tokens: int
) -> None:
    """Checks an arm's steps on ``prompts``, whose answers are in the folder ``text``; trees must be deep enough."""
    seen = text, tools.backbone, tools.heads[kind]
    engine = make_engine(arm, tools, EngineSettings.for_one())
    depths, taus = set(), []
    for prompt, trace, expansion_at in zip(prompts, traces_of(*seen), expansions_of(*seen), strict=True):
        real = engine.generate(prompt, new_tokens)
        with torch.inference_mode():
            replayed = replay_steps(trace, engine.policy, expansion_at)
        assert [step.topology for step in real.steps] == [step.topology for step in replayed]
        assert [step.gained for step in real.steps[:-1]] == [step.gained for step in replayed[:-1]]
        assert real.tau == len(trace) / len(replayed)
        depths |= {step.topology.max_depth for step in real.steps}
        taus.append(real.tau)
    assert max(depths) > 4, "trees of four levels show nothing"
    assert max(taus) > 2
