from collections.abc import Sequence

import pytest
import torch
from transformers import PreTrainedModel

from entmtp.decoding.state import DecodingState
from entmtp.heads.native import NativeHeads
from entmtp.models.backbone import Backbone
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Topology
from tests.native import MTP_TYPES, Chain, mtp_model, native_heads
from tests.small import small_prompt
from tests.tiny import TREES

CLOSE = 2e-4
BUSHY = Topology.of([(0,), (1,), (3,), (0, 0), (0, 2), (1, 0), (0, 2, 0), (0, 2, 1), (1, 0, 0), (1, 0, 0, 1)])


@pytest.fixture(scope="module", params=MTP_TYPES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return mtp_model(request.param)


@pytest.fixture(scope="module")
def backbone(model: PreTrainedModel) -> Backbone:
    return Backbone(model)


@pytest.fixture(scope="module")
def heads(backbone: Backbone) -> NativeHeads:
    return native_heads(backbone)


def _check(chain: Chain, text: Sequence[int], tree: Topology, tokens: list[int], log_probs: list[float]) -> None:
    """The tree's guesses are those of each of its paths run alone."""
    assert tokens[0] == text[-1]
    for node, path in enumerate(tree.paths, start=1):
        before = [tokens[tree.index[path[:depth]]] for depth in range(1, len(path))]
        expected = chain.log_probs(text, before)
        ranked = expected.sort(descending=True)
        assert abs(expected[tokens[node]] - log_probs[node]) < CLOSE
        assert abs(ranked.values[path[-1]] - log_probs[node]) < CLOSE


def test_a_tree_holds_what_its_paths_alone_would_guess(
    model: PreTrainedModel, backbone: Backbone, heads: NativeHeads
) -> None:
    prompts = [small_prompt(9, seed=1), small_prompt(14, seed=2), small_prompt(1, seed=3)]
    state = DecodingState(backbone, heads, slots=3, capacity=64)
    roots = [state.prefill(slot, prompt)[0] for slot, prompt in enumerate(prompts)]
    trees = [BUSHY, Topology.root_only(), TREES["wide"]]
    batch = TreeBatch.of(trees)
    assert state.memory is not None
    with torch.inference_mode():
        proposal = state.memory.fill((0, 1, 2), state.root, batch)
    chain = Chain(model, heads)
    for row, (prompt, root, tree) in enumerate(zip(prompts, roots, trees, strict=True)):
        _check(chain, [*prompt, root], tree, proposal.tokens[row].tolist(), proposal.log_probs[row].tolist())
