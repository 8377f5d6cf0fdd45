"""Rank traces of heads that read the states that enter some layers are those of a real run."""

from pathlib import Path

import pytest
import torch

from entmtp.calibration.build import expansions_of, traces_of, write_answers
from entmtp.decoding.engine import Engine
from entmtp.evaluation.run.reference import make_reference
from entmtp.models.backbone import Backbone
from entmtp.policies.static import StaticPolicy
from entmtp.settings import CalibrationSettings
from entmtp.trees.topology import Topology
from entmtp.trees.trace_replay import static_tau
from tests.helpers.heads_with_features import LAYERS, FeatureHeads, StoringHeads, feature_heads
from tests.helpers.small_cases import single_engine, small_backbone, small_prompt, traced

NEW_TOKENS = 40
PROMPTS = [small_prompt(length, seed=length) for length in (9, 14)]
TREE = Topology.of([*((rank,) for rank in range(6)), *((rank, child) for rank in range(4) for child in range(4))])


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return small_backbone("llama", num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def folder(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("answers")
    write_answers(backbone, PROMPTS, path, CalibrationSettings(max_new_tokens=NEW_TOKENS))
    return path


def engine_of(backbone: Backbone, heads: FeatureHeads) -> Engine:
    return single_engine(backbone, heads, StaticPolicy(TREE, 8))


@pytest.mark.parametrize("kind", [FeatureHeads, StoringHeads])
def test_traces_of_written_answers_are_those_of_a_real_run(
    kind: type[FeatureHeads], backbone: Backbone, folder: Path
) -> None:
    heads = feature_heads(backbone, kind)
    traces = traces_of(folder, backbone, heads)
    done = [engine_of(backbone, heads).generate(prompt, NEW_TOKENS) for prompt in PROMPTS]
    tau = sum(len(one.tokens) for one in done) / sum(len(one.steps) for one in done)
    assert static_tau(traces, TREE) == pytest.approx(tau)
    assert tau > 1.1, "nothing was accepted: the case shows nothing"
    _, log_probs = expansions_of(folder, backbone, heads)[0](3).next_level([0], 4)
    torch.testing.assert_close(log_probs[0], traces[0].confidence[3, 0, :4], rtol=0, atol=1e-4)


def test_a_reference_has_the_trace_of_its_text(backbone: Backbone) -> None:
    heads, prompt = feature_heads(backbone), PROMPTS[0]
    tokens = engine_of(backbone, heads).generate(prompt, NEW_TOKENS).tokens
    reference = make_reference(backbone, heads, prompt, tokens, drawn=False)
    assert reference.trace is not None
    assert torch.equal(reference.trace.ranks, traced(backbone, heads, prompt, tokens).ranks)
    assert reference.margins == make_reference(backbone, None, prompt, tokens, drawn=False).margins
