"""No tree of as many nodes that was published does better than the optimal one on the traces that it was made from."""

from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entmtp.calibration.build import traces_of, write_answers
from entmtp.calibration.optimal import optimal_tree
from entmtp.heads.checkpoint import BUNDLED_KINDS, bundled_heads, load_heads
from entmtp.models.build import build_backbone
from entmtp.models.loading.load import encode_chat
from entmtp.settings import CalibrationSettings
from entmtp.suites import draw, load_suite, split
from entmtp.trees.published import published_order
from entmtp.trees.topology import Topology
from entmtp.trees.trace_replay import static_tau

Bundled = tuple[PreTrainedModel, PreTrainedTokenizerBase]
SETTINGS = CalibrationSettings(prompts=8, max_new_tokens=64)


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["gsm8k", "sharegpt"])
def test_an_optimal_tree_of_any_size_beats_or_equals_the_published_one(
    suite: str, bundled: Bundled, tmp_path: Path
) -> None:
    model, tokenizer = bundled
    backbone = build_backbone(model)
    prompts = draw(split(load_suite(suite).prompts)[0], SETTINGS.prompts, seed=0)
    write_answers(backbone, [encode_chat(tokenizer, prompt.text) for prompt in prompts], tmp_path, SETTINGS)
    for kind in BUNDLED_KINDS:
        heads = load_heads(bundled_heads(kind), backbone)
        traces = traces_of(tmp_path, backbone, heads)
        assert len(traces) == SETTINGS.prompts
        published = [path for path in published_order() if len(path) <= heads.num_heads]
        assert len(published) == SETTINGS.max_nodes
        worse = []
        for nodes in range(1, SETTINGS.max_nodes + 1):
            optimal = optimal_tree(traces, nodes)
            assert optimal.nodes == nodes
            ours, theirs = static_tau(traces, optimal), static_tau(traces, Topology.of(published[:nodes]))
            if ours < theirs:
                worse.append(f"{kind}, {nodes} nodes: tau {ours:.4f}, the published tree's {theirs:.4f}")
        assert worse == []
