"""EAGLE-3 heads equal the published formula in every layout and variant, wherever they draft."""

import pytest
import torch

from entmtp.heads.autoregressive.drafter import AutoregressiveDrafter
from entmtp.heads.eagle3 import Eagle3Heads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.settings import Kernels
from entmtp.trees.topology import Topology
from tests.helpers.eagle3_checkpoints import EAGLE3_VARIANTS, Eagle3Checkpoint
from tests.helpers.eagle3_drafting import Drafting, deep_model, features_of, imported_eagle3, seen_model
from tests.helpers.eagle3_reference import Eagle3Reference
from tests.helpers.heads_with_caches import BUSHY
from tests.helpers.tiny_models import TREES, random_tokens

EXACT = 1e-5
"""Absolute tolerance of a log-probability in float32 against float64."""

PROMPTS = [random_tokens(9, seed=1), random_tokens(6, seed=2)]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build_backbone(deep_model(), kernels="eager")


@pytest.fixture(scope="module", params=list(EAGLE3_VARIANTS))
def checkpoint(request: pytest.FixtureRequest, backbone: Backbone) -> Eagle3Checkpoint:
    return EAGLE3_VARIANTS[request.param](seen_model(backbone))


@pytest.fixture(scope="module")
def heads(kernels: Kernels, checkpoint: Eagle3Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Eagle3Heads:
    return imported_eagle3(checkpoint, build_backbone(deep_model(), kernels), tmp_path_factory.mktemp("heads"))


@pytest.fixture(scope="module")
def reference(checkpoint: Eagle3Checkpoint, backbone: Backbone) -> Eagle3Reference:
    return Eagle3Reference(checkpoint, seen_model(backbone))


def test_the_heads_read_the_named_layers_and_guess_the_named_tokens(
    heads: Eagle3Heads, checkpoint: Eagle3Checkpoint
) -> None:
    assert heads.kind == "eagle3"
    assert heads.num_heads == 8
    assert heads.feature_layers == checkpoint.features
    assert torch.equal(heads.draft_vocab.long(), checkpoint.guessable)


def _check(drafting: Drafting, slot: int, tree: Topology, row: tuple[torch.Tensor, torch.Tensor],
           reference: Eagle3Reference, guessable: torch.Tensor) -> None:  # fmt: skip
    """Asserts that a drafted tree holds the formula's likeliest tokens along each of its paths."""
    tokens, log_probs = row[0].tolist(), row[1]
    features, text = drafting.features(slot), drafting.texts[slot]
    for node, path in enumerate(tree.paths, start=1):
        before = [tokens[tree.index[path[:depth]]] for depth in range(1, len(path))]
        expected = reference.log_probs(features, [*text, *before])
        ranked = expected.sort(descending=True)
        assert int(guessable[ranked.indices[path[-1]]]) == tokens[node]
        assert abs(float(ranked.values[path[-1]] - log_probs[node])) < EXACT


def test_trees_hold_what_the_formula_guesses_over_several_steps(
    heads: Eagle3Heads, reference: Eagle3Reference, backbone: Backbone, checkpoint: Eagle3Checkpoint
) -> None:
    drafting = Drafting(heads, backbone.model)
    drafting.prefill(0, PROMPTS[0], root=5, cuts=[4])
    drafting.prefill(1, PROMPTS[1], root=7)
    steps = [
        ((0, 1), (BUSHY, TREES["chain"]), (7, 2)),
        ((1, 0), (TREES["wide"], TREES["bushy"]), (0, 5)),
        ((1,), (BUSHY,), (10,)),
        ((0, 1), (TREES["chain"], Topology.root_only()), (3, 0)),
    ]
    for number, (slots, trees, nodes) in enumerate(steps):
        drafted = drafting.draft(slots, trees)
        for row, (slot, tree) in enumerate(zip(slots, trees, strict=True)):
            found = drafted.tokens[row], drafted.log_probs[row]
            _check(drafting, slot, tree, found, reference, checkpoint.guessable)
        drafting.accept(slots, drafted, trees, nodes, [11 + number + slot for slot in slots])


@torch.inference_mode()
def test_states_of_a_prompt_are_those_of_the_formula(
    heads: Eagle3Heads, reference: Eagle3Reference, backbone: Backbone
) -> None:
    drafting = Drafting(heads, backbone.model, slots=1)
    features = features_of(backbone.model, PROMPTS[0], heads.feature_layers)
    drafting.cache.append([0], [len(features)])
    assert isinstance(drafting.drafter, AutoregressiveDrafter)
    states = drafting.drafter.prefill_states(0, features, PROMPTS[0])[0][:, 0]
    logits = heads.draft_logits(states)
    for at in range(1, len(PROMPTS[0])):
        expected = reference.logits(features[:at], PROMPTS[0][: at + 1])
        torch.testing.assert_close(logits[at - 1].double(), expected, rtol=1e-5, atol=EXACT)


@torch.inference_mode()
def test_a_traced_text_guesses_as_the_drafter_does_along_the_same_path(
    heads: Eagle3Heads, reference: Eagle3Reference, backbone: Backbone
) -> None:
    prompt, answer = PROMPTS[1], random_tokens(12, seed=5)
    tokens = [*prompt, *answer]
    features = features_of(backbone.model, tokens, heads.feature_layers)
    text = heads.traced_text(features, torch.tensor(tokens), begin=len(prompt))
    windows = torch.tensor(answer).unfold(0, heads.num_heads, 1)
    states = text.teacher_forced(torch.arange(len(windows)), windows)
    log_probs = heads.draft_logits(states).log_softmax(-1)
    for position in (0, len(windows) - 1):
        root = len(prompt) + position
        for depth in (0, 1, 3, heads.num_heads - 1):
            expected = reference.log_probs(features[:root], tokens[: root + 1 + depth])
            torch.testing.assert_close(log_probs[position, depth].double(), expected, rtol=0, atol=EXACT)
    drafting = Drafting(heads, backbone.model, slots=1)
    drafting.prefill(0, tokens[: len(prompt) + 2], root=tokens[len(prompt) + 2])
    ours, theirs = text.expand(2), drafting.drafter.expand((0,), torch.tensor([tokens[len(prompt) + 2]]))
    for parents in ([0], [0, 2], [1, 5], [3]):
        for found, expected in zip(ours.next_level(parents, 3), theirs.next_level(parents, 3), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)


@torch.inference_mode()
def test_roots_on_both_sides_of_a_part_of_a_text_are_traced_as_each_alone(heads: Eagle3Heads) -> None:
    """The compiled kernels read 128 positions at once (attention.hpp), and the text goes on after each root."""
    tokens = torch.tensor(random_tokens(150))
    text = heads.traced_text(torch.randn(len(tokens), heads.feature_size), tokens, begin=100)
    at = torch.arange(22, 32)
    windows = tokens[100:].unfold(0, heads.num_heads, 1)[at]
    together = text.teacher_forced(at, windows)
    alone = [text.teacher_forced(at[root : root + 1], windows[root : root + 1]) for root in range(len(at))]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=EXACT)
