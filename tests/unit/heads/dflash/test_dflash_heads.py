"""DFlash and DSpark heads equal the published formula in every layout and variant, wherever they draft."""

import pytest
import torch

from entmtp.heads.dflash import DFlashHeads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.settings import Kernels
from entmtp.trees.topology import Topology
from tests.helpers.dflash_checkpoints import DFLASH_VARIANTS, DFlashCheckpoint
from tests.helpers.dflash_drafting import DFlashDrafting, imported_dflash
from tests.helpers.dflash_heads import dflash_heads
from tests.helpers.dflash_reference import DFlashReference
from tests.helpers.eagle3_drafting import deep_model, features_of, seen_model
from tests.helpers.heads_with_caches import BUSHY
from tests.helpers.tiny_models import TREES, random_tokens

EXACT = 1e-5
"""Absolute tolerance of a log-probability in float32 against float64."""

PROMPTS = [random_tokens(9, seed=1), random_tokens(6, seed=2)]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build_backbone(deep_model(), kernels="eager")


@pytest.fixture(scope="module", params=list(DFLASH_VARIANTS))
def checkpoint(request: pytest.FixtureRequest, backbone: Backbone) -> DFlashCheckpoint:
    return DFLASH_VARIANTS[request.param](seen_model(backbone))


@pytest.fixture(scope="module")
def heads(kernels: Kernels, checkpoint: DFlashCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> DFlashHeads:
    return imported_dflash(checkpoint, build_backbone(deep_model(), kernels), tmp_path_factory.mktemp("heads"))


@pytest.fixture(scope="module")
def reference(checkpoint: DFlashCheckpoint, backbone: Backbone) -> DFlashReference:
    return DFlashReference(checkpoint, seen_model(backbone))


def test_the_heads_read_the_named_layers_and_guess_the_named_tokens(
    heads: DFlashHeads, checkpoint: DFlashCheckpoint
) -> None:
    assert heads.kind == "dflash"
    assert heads.num_heads == checkpoint.guesses
    assert heads.feature_layers == checkpoint.features
    assert torch.equal(heads.draft_vocab.long(), checkpoint.guessable)


def _check(drafting: DFlashDrafting, slot: int, tree: Topology, row: tuple[torch.Tensor, torch.Tensor],
           reference: DFlashReference, guessable: torch.Tensor) -> None:  # fmt: skip
    """Asserts that a drafted tree holds the formula's likeliest tokens along each of its paths."""
    tokens, log_probs = row[0].tolist(), row[1]
    root = drafting.texts[slot][-1]
    block = reference.block(drafting.features(slot), root)
    for node, path in enumerate(tree.paths, start=1):
        before = [tokens[tree.index[path[:depth]]] for depth in range(1, len(path))]
        expected = reference.log_probs(block, [root, *before])
        ranked = expected.sort(descending=True)
        assert int(guessable[ranked.indices[path[-1]]]) == tokens[node]
        assert abs(float(ranked.values[path[-1]] - log_probs[node])) < EXACT


def test_trees_hold_what_the_formula_guesses_over_several_steps(
    heads: DFlashHeads, reference: DFlashReference, backbone: Backbone, checkpoint: DFlashCheckpoint
) -> None:
    drafting = DFlashDrafting(heads, backbone.model)
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
def test_a_traced_text_guesses_as_the_drafter_does_along_the_same_path(
    heads: DFlashHeads, reference: DFlashReference, backbone: Backbone
) -> None:
    prompt, answer = PROMPTS[1], random_tokens(40, seed=5)  # more roots than one pass runs
    tokens = [*prompt, *answer]
    features = features_of(backbone.model, tokens, heads.feature_layers)
    text = heads.traced_text(features, torch.tensor(tokens), begin=len(prompt))
    windows = torch.tensor(answer).unfold(0, heads.num_heads, 1)
    states = text.teacher_forced(torch.arange(len(windows)), windows)
    log_probs = heads.draft_logits(states).log_softmax(-1)
    for position in (0, len(windows) - 1):
        root = len(prompt) + position
        block = reference.block(features[:root], tokens[root])
        for depth in (0, 1, heads.num_heads - 1):
            expected = reference.log_probs(block, tokens[root : root + 1 + depth])
            torch.testing.assert_close(log_probs[position, depth].double(), expected, rtol=0, atol=EXACT)
    drafting = DFlashDrafting(heads, backbone.model, slots=1)
    drafting.prefill(0, tokens[: len(prompt) + 2], root=tokens[len(prompt) + 2])
    ours, theirs = text.expand(2), drafting.drafter.expand((0,), torch.tensor([tokens[len(prompt) + 2]]))
    for parents in ([0], [0, 2], [1, 5], [3]):
        for found, expected in zip(ours.next_level(parents, 3), theirs.next_level(parents, 3), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)


@torch.inference_mode()
def test_the_estimates_of_acceptance_are_those_of_the_formula(
    heads: DFlashHeads, reference: DFlashReference, backbone: Backbone
) -> None:
    drafting = DFlashDrafting(heads, backbone.model, slots=1)
    drafting.prefill(0, PROMPTS[0], root=5)
    expansion = drafting.drafter.expand((0,), torch.tensor([5]))
    first, _ = expansion.next_level([0], 3)
    estimates = [expansion.estimated_odds()]
    expansion.next_level([2, 0], 3)
    estimates.append(expansion.estimated_odds())
    assert heads.estimates_acceptance == heads.config.has_confidence
    if not heads.estimates_acceptance:
        assert estimates == [None, None]
        return
    roots, children = (odds.sigmoid() for odds in estimates if odds is not None)
    block = reference.block(drafting.features(0), 5)
    assert abs(reference.confidence(block, [5]) - float(roots)) < EXACT
    for parent, estimate in zip((2, 0), children.tolist(), strict=True):
        assert abs(reference.confidence(block, [5, int(first[0, parent])]) - estimate) < EXACT


def test_the_root_attends_to_the_mask_tokens_after_it(backbone: Backbone) -> None:
    """The guesses of its state change with their number, and would not if attention were causal."""
    guessed = []
    for block in (2, 6):
        heads = dflash_heads(backbone, root_guesses=True, block_size=block, num_heads=block)
        drafting = DFlashDrafting(heads, backbone.model, slots=1)
        drafting.prefill(0, PROMPTS[0], root=5)
        guessed.append(drafting.draft([0], [Topology.of([(0,)])]).log_probs[0, 1])
    assert abs(float(guessed[0] - guessed[1])) > 1e-3
