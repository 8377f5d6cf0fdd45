"""On the bundled model, replay takes the very steps of a real run, from signals that are the same."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entmtp.calibration.policy_replay import ExpansionAt, ReplayedStep, replay_steps
from entmtp.calibration.thresholds import PROBES, frontier_of, step_starts
from entmtp.decoding.outputs import StepRecord
from entmtp.evaluation.run.arms import Toolbox, make_engine
from entmtp.heads.checkpoint import bundled_heads, load_heads
from entmtp.models.build import build_backbone
from entmtp.models.loading.load import encode_chat, load_model
from entmtp.policies.hardware_profile import load_profile
from entmtp.settings import EngineSettings
from entmtp.suites import PAPER_SUITES, Prompt, scored_prompts
from entmtp.trees.bank import TreeBank, bundled_bank, load_bank
from entmtp.trees.trace import RankTrace
from tests.helpers.small_cases import drafting, traced
from tests.helpers.tiny_models import greedy

PROMPTS, NEW_TOKENS = 6, 32

Bundled = tuple[PreTrainedModel, PreTrainedTokenizerBase]
ToolsOf = Callable[[str], Toolbox]
Text = tuple[list[int], list[int], RankTrace, ExpansionAt]
Texts = Mapping[str, list[Text]]


@pytest.fixture(scope="module", params=["hydra", "eagle3"])
def kind(request: pytest.FixtureRequest) -> str:
    """Heads that guess by a path's tokens alone, and heads with a draft cache."""
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def tools_of(kind: str) -> ToolsOf:
    """A suite's toolbox with a ladder that moves; steps cost what a shipped profile says, so that runs are alike."""
    backbone = build_backbone(load_model("bundled")[0])
    heads = {kind: load_heads(bundled_heads(kind), backbone)}
    cost = load_profile("xeon-2-cores").cost()

    def tools(suite: str) -> Toolbox:
        bank = with_two_rungs(load_bank(bundled_bank(suite, kind)))
        return Toolbox(backbone, heads, {kind: bank}, {kind: cost})

    return tools


def with_two_rungs(bank: TreeBank) -> TreeBank:
    """The bank with a threshold at its texts' median entropy: its own tuning may well keep a single tree."""
    assert bank.tuning is not None
    starts = step_starts(bank.tuning.ranked_texts(), [bank.overall.tree(size) for size in PROBES], bank.entropy_window)
    threshold = float(np.median(starts.entropy))
    halves = (starts.entropy < threshold, starts.entropy >= threshold)
    bins = [frontier_of(starts.ranks[half], len(bank.overall.paths), float(half.mean())) for half in halves]
    return bank.model_copy(update={"thresholds": [threshold], "bins": bins})


@pytest.fixture(scope="module")
def texts(bundled: Bundled, kind: str, tools_of: ToolsOf) -> Texts:
    """Texts of each suite's scored prompts: the prompt, the model's own greedy text, the heads' trace and guesses."""
    model, tokenizer = bundled

    def read(prompt: Prompt, tools: Toolbox) -> Text:
        ids = encode_chat(tokenizer, prompt.text)
        text = greedy(model, ids, NEW_TOKENS)
        seen = tools.backbone, tools.heads[kind], ids, text
        return ids, text, traced(*seen), drafting(*seen)

    scored = {suite: scored_prompts(suite, PROMPTS) for suite in PAPER_SUITES}
    return {suite: [read(prompt, tools_of(suite)) for prompt in prompts] for suite, prompts in scored.items()}


def differences(real: Sequence[StepRecord], replayed: Sequence[ReplayedStep], trace: RankTrace) -> list[str]:
    """One line per step that is not its replay's.

    Behind the text's end the trace knows only misses, where a real run may accept more. A step that gets there is the
    last, so all others are compared whole, and the last as far as the text goes.
    """
    found = [] if len(real) == len(replayed) else [f"{len(real)} real steps, {len(replayed)} replayed"]
    for number, (ours, theirs) in enumerate(zip(real, replayed, strict=False)):
        path = ours.path if number < len(real) - 1 else ours.path[: len(trace) - ours.position - 1]
        here = ours.position, ours.topology, path
        there = theirs.position, theirs.topology, tuple(trace.ranks[theirs.position, : theirs.gained - 1].tolist())
        if here != there:
            found.append(f"step {number}: {here}, replayed {there}")
        # A trace has no prompt, so a replay can't know the context.
        seen = replace(ours.signals, context=theirs.signals.context)
        if astuple(seen) != pytest.approx(astuple(theirs.signals), abs=1e-3):
            found.append(f"step {number}: {ours.signals}, replayed {theirs.signals}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("method", ["best", "entmtp", "entmtp-goodput", "entmtp-dynamic"])
def test_replay_takes_the_steps_of_real_runs(method: str, kind: str, tools_of: ToolsOf, texts: Texts) -> None:
    """Twenty-four prompts of 32 tokens over the four suites."""
    arm = f"{kind}-best" if method == "best" else method
    trees = set()
    for suite, its_texts in texts.items():
        assert len(its_texts) == PROMPTS
        engine = make_engine(arm, tools_of(suite), EngineSettings.for_one())
        for ids, text, trace, expansion_at in its_texts:
            real = engine.generate(ids, NEW_TOKENS)
            with torch.inference_mode():
                replayed = replay_steps(trace, engine.policy, expansion_at)
            assert real.tokens == text
            assert differences(real.steps, replayed, trace) == []
            assert real.tau == len(trace) / len(replayed)
            trees |= {(suite, step.topology) for step in real.steps}
    assert (len(trees) > len(PAPER_SUITES)) == (method != "best"), "adaptive arms must adapt"
