"""The draft cache of a text is the same however its tokens were committed, and blocks leave nothing in it."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entmtp.heads.dflash import DFlashHeads
from entmtp.models.backbone import PREFILL_CHUNK, Backbone
from entmtp.models.build import build_backbone
from entmtp.trees.topology import Topology
from tests.helpers.dflash_checkpoints import dflash
from tests.helpers.dflash_drafting import DFlashDrafting, imported_dflash
from tests.helpers.dflash_heads import dflash_heads, dspark_heads
from tests.helpers.eagle3_drafting import deep_model, seen_model
from tests.helpers.examples import examples
from tests.helpers.heads_with_caches import BUSHY, CLOSE
from tests.helpers.tiny_models import VOCAB, random_tokens, topologies


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build_backbone(deep_model(), kernels="eager")


@pytest.fixture(scope="module")
def heads(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> DFlashHeads:
    checkpoint = dflash(seen_model(backbone), "DeepSpec", rank=6)
    return imported_dflash(checkpoint, backbone, tmp_path_factory.mktemp("heads"))


@given(st.data())
@settings(max_examples=examples(per_hundred=12), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_accepted_paths_leave_the_draft_cache_of_a_text_prefilled_at_once(
    backbone: Backbone, heads: DFlashHeads, data: st.DataObject
) -> None:
    drafting = DFlashDrafting(heads, backbone.model)
    for slot in range(2):
        prompt = random_tokens(data.draw(st.integers(2, 10), "prompt"), seed=data.draw(st.integers(0, 9)))
        cut = data.draw(st.integers(1, len(prompt) - 1), "part")
        drafting.prefill(slot, prompt, root=data.draw(st.integers(0, VOCAB - 1)), cuts=[cut])
    for _ in range(data.draw(st.integers(1, 4), "steps")):
        slots = data.draw(st.sampled_from([(0,), (1,), (0, 1), (1, 0)]), "slots")
        trees = [data.draw(topologies(), "tree") for _ in slots]
        nodes = [data.draw(st.integers(0, tree.nodes), "accepted") for tree in trees]
        roots = [data.draw(st.integers(0, VOCAB - 1), "root") for _ in slots]
        drafting.accept(slots, drafting.draft(slots, trees), trees, nodes, roots)
        if data.draw(st.booleans(), "begin again"):
            source, target = data.draw(st.permutations([0, 1]), "copied")
            drafting.begin_again(source, target, data.draw(st.integers(1, len(drafting.texts[source]) - 1), "shared"))
    for slot in range(2):
        _check(drafting, slot, DFlashDrafting(heads, backbone.model, slots=1))


def _check(drafting: DFlashDrafting, slot: int, fresh: DFlashDrafting) -> None:
    """Checks a slot's entries and the tree drafted next against a text prefilled at once."""
    text = drafting.texts[slot]
    fresh.prefill(0, text[:-1], root=text[-1])
    for ours, expected in zip(drafting.entries(slot), fresh.entries(0), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=CLOSE)
    found, wanted = drafting.draft([slot], [BUSHY]), fresh.draft([0], [BUSHY])
    torch.testing.assert_close(found.log_probs, wanted.log_probs, rtol=0, atol=CLOSE)


def test_swapped_slots_go_on_with_each_others_texts(backbone: Backbone, heads: DFlashHeads) -> None:
    drafting = DFlashDrafting(heads, backbone.model)
    drafting.prefill(0, random_tokens(8, seed=1), root=3)
    drafting.prefill(1, random_tokens(5, seed=2), root=4)
    drafting.swap()
    for slot in range(2):
        _check(drafting, slot, DFlashDrafting(heads, backbone.model, slots=1))


def test_a_block_is_dropped_however_often_it_is_run(backbone: Backbone, heads: DFlashHeads) -> None:
    drafting = DFlashDrafting(heads, backbone.model)
    drafting.prefill(0, random_tokens(8, seed=1), root=3)
    drafting.prefill(1, random_tokens(5, seed=2), root=4)
    before = [entry.clone() for entry in drafting.entries(0)]
    drafts = [drafting.draft([0, 1], [BUSHY, BUSHY]) for _ in range(2)]
    assert torch.equal(drafts[0].tokens, drafts[1].tokens)
    assert torch.equal(drafts[0].log_probs, drafts[1].log_probs)
    assert all(torch.equal(found, expected) for found, expected in zip(drafting.entries(0), before, strict=True))


def test_a_long_prompt_is_read_in_chunks(heads: DFlashHeads, backbone: Backbone) -> None:
    length = PREFILL_CHUNK + 3
    features = torch.randn(length, heads.feature_size, generator=torch.Generator().manual_seed(0))
    drafters = []
    for cuts in ([0, length], [0, 5, length]):
        drafting = DFlashDrafting(heads, backbone.model, slots=1, capacity=length)
        with torch.inference_mode():
            for begin, end in pairwise(cuts):
                drafting.cache.append([0], [end - begin])
                drafting.drafter.prefill(0, features[begin:end], [1] * (end - begin))
        drafters.append(drafting)
    for ours, theirs in zip(*(drafting.cache.tree_layers for drafting in drafters), strict=True):
        torch.testing.assert_close(ours.keys[:, :, 1 : length + 1], theirs.keys[:, :, 1 : length + 1])
        torch.testing.assert_close(ours.values[:, :, 1 : length + 1], theirs.values[:, :, 1 : length + 1])
    torch.testing.assert_close(drafters[0].drafter.states, drafters[1].drafter.states)


def test_the_cache_has_rows_for_a_block_at_the_end_of_a_text(backbone: Backbone, heads: DFlashHeads) -> None:
    assert heads.cache_layout.spare_rows == heads.config.block_size
    drafting = DFlashDrafting(heads, backbone.model, slots=1, capacity=9)
    drafting.prefill(0, random_tokens(9), root=3)
    assert drafting.draft([0], [BUSHY]).tokens.shape == (1, BUSHY.nodes + 1)


@pytest.mark.parametrize("make", [dflash_heads, dspark_heads])
def test_trees_of_fifteen_levels_are_drafted(make: Callable[..., DFlashHeads], backbone: Backbone) -> None:
    heads = make(backbone, block_size=16, num_heads=15, root_guesses=False)
    deep = Topology.of([*((0,) * depth for depth in range(1, 16)), (1,), (0,) * 14 + (1,)])
    drafting = DFlashDrafting(heads, backbone.model, slots=1)
    drafting.prefill(0, random_tokens(9), root=3)
    drafted = drafting.draft([0], [deep])
    assert (drafted.log_probs[0, 1:] < 0).all()
    assert len(set(drafted.tokens[0, -2:].tolist())) == 2


def test_a_captured_graph_does_not_run_them(heads: DFlashHeads, backbone: Backbone) -> None:
    assert not DFlashDrafting(heads, backbone.model).drafter.is_capturable
