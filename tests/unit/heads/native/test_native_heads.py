from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from entmtp.calibration.build import read_text
from entmtp.decoding.state import DecodingState
from entmtp.decoding.timers import Stopwatch
from entmtp.errors import EntMTPError
from entmtp.heads.checkpoint import load_heads
from entmtp.heads.native.heads import NativeHeads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.cache import TreeCache
from entmtp.training.corpus import Text
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Topology
from tests.helpers.heads_with_caches import BUSHY, CLOSE
from tests.helpers.native_models import MTP_TYPES, Chain, mtp_model, native_heads, save_native
from tests.helpers.small_cases import small_backbone, small_prompt
from tests.helpers.small_fixtures import backbone_of_model
from tests.helpers.tiny_models import TREES

__all__ = ["backbone_of_model"]


@pytest.fixture(scope="module", params=MTP_TYPES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return mtp_model(request.param)


@pytest.fixture(scope="module")
def heads(backbone: Backbone) -> NativeHeads:
    return native_heads(backbone)


def _check(chain: Chain, text: Sequence[int], tree: Topology, tokens: list[int], log_probs: list[float]) -> None:
    """Asserts that the tree's log-probabilities equal those of each of its paths run alone."""
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
    assert state.drafter is not None
    with torch.inference_mode():
        proposal = state.drafter.draft((0, 1, 2), state.root, batch)
    chain = Chain(model, heads)
    for row, (prompt, root, tree) in enumerate(zip(prompts, roots, trees, strict=True)):
        _check(chain, [*prompt, root], tree, proposal.tokens[row].tolist(), proposal.log_probs[row].tolist())


def test_a_tree_that_grows_holds_what_its_paths_alone_would_guess(
    model: PreTrainedModel, backbone: Backbone, heads: NativeHeads
) -> None:
    prompts = [small_prompt(9, seed=1), small_prompt(5, seed=2)]
    state = DecodingState(backbone, heads, slots=3, capacity=64)
    texts = [[*prompt, state.prefill(slot, prompt)[0]] for slot, prompt in zip((2, 0), prompts, strict=True)]
    chain = Chain(model, heads)
    expansion = state.expand([2, 0], Stopwatch(backbone.device))
    paths: list[tuple[int, list[int]]] = [(0, []), (1, [])]
    parents = [0, 1]
    # Guesses of each level to expand: many of one request, few of the other, and not the likeliest alone.
    for chosen in ([0, 2, 4], [1, 2, 6], [0, 3], []):
        tokens, log_probs = expansion.next_level(parents, 3)
        paths = [paths[number] for number in parents]
        found = []
        for at, (request, path) in enumerate(paths):
            expected = chain.log_probs(texts[request], path).topk(3)
            torch.testing.assert_close(log_probs[at], expected.values, rtol=0, atol=CLOSE)
            assert tokens[at].tolist() == expected.indices.tolist()
            found += [(request, [*path, int(token)]) for token in tokens[at]]
        paths, parents = found, chosen


def test_guesses_at_every_position_of_a_traced_text_equal_those_after_its_prefix(
    model: PreTrainedModel, backbone: Backbone, heads: NativeHeads
) -> None:
    prompt, answer = small_prompt(3, seed=4), small_prompt(12, seed=5)
    text, _ = read_text(backbone, heads, Text(prompt, answer))
    assert text is not None
    chain = Chain(model, heads)
    at = torch.arange(len(answer) - heads.num_heads + 1)
    windows = torch.tensor(answer).unfold(0, heads.num_heads, 1)
    guessed = heads.draft_logits(text.teacher_forced(at, windows)).log_softmax(-1)
    for position in (0, 1, 5, len(at) - 1):
        before = [*prompt, *answer[: position + 1]]
        for head in range(heads.num_heads):
            path = answer[position + 1 : position + 1 + head]
            torch.testing.assert_close(guessed[position, head], chain.log_probs(before, path), rtol=0, atol=CLOSE)
        expansion = text.expand(position)
        expansion.next_level([0], 2)
        log_probs = expansion.next_level([1], 2)[1]
        second = int(chain.log_probs(before, []).topk(2).indices[1])
        torch.testing.assert_close(log_probs[0], chain.log_probs(before, [second]).topk(2).values, rtol=0, atol=CLOSE)


def test_the_error_for_a_model_without_such_layers_names_its_type() -> None:
    with pytest.raises(EntMTPError, match=r"model type 'llama' has no multi-token-prediction layers.*'entmtp train'"):
        load_heads("native", small_backbone())


def test_the_layers_come_out_of_the_models_own_files(tmp_path: Path) -> None:
    model = mtp_model("mellum", mtp_mlp_layer_types=["dense"])
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(EntMTPError, match=r"layers of model type 'mellum' can't be loaded .*missing"):
        load_heads("native", build_backbone(loaded))
    made = native_heads(build_backbone(model))
    save_native(model, made, tmp_path)
    backbone = build_backbone(AutoModelForCausalLM.from_pretrained(tmp_path))
    heads = load_heads("native", backbone)
    assert isinstance(heads, NativeHeads)
    for name, value in made.mtp.layers.state_dict().items():
        assert torch.equal(heads.mtp.layers.state_dict()[name], value)
    assert heads.fingerprint == made.fingerprint != native_heads(build_backbone(model), seed=1).fingerprint


def test_they_guess_with_a_cache_alone(heads: NativeHeads) -> None:
    assert not hasattr(heads, "propose")
    assert not heads.drafter(
        TreeCache(heads.cache_layout.layers, 1, 64, torch.device("cpu"), heads.cache_layout.state_buffers)
    ).is_capturable
