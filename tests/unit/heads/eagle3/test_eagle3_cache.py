"""The draft cache of a text is the same however its tokens were committed."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entmtp.heads.eagle3 import Eagle3Heads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.settings import Kernels
from tests.helpers.eagle3_checkpoints import eagle3
from tests.helpers.eagle3_drafting import Drafting, deep_model, imported_eagle3, seen_model
from tests.helpers.examples import examples
from tests.helpers.heads_with_caches import BUSHY, CLOSE
from tests.helpers.tiny_models import VOCAB, random_tokens, topologies


@pytest.fixture(scope="module")
def backbone(kernels: Kernels) -> Backbone:
    """A model whose kernels make entries at once, or one whose kernels defer them."""
    return build_backbone(deep_model(), kernels)


@pytest.fixture(scope="module")
def heads(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Eagle3Heads:
    checkpoint = eagle3(seen_model(backbone), "speculators", layers=2, norm_before_residual=True)
    return imported_eagle3(checkpoint, backbone, tmp_path_factory.mktemp("heads"))


@given(st.data())
@settings(max_examples=examples(per_hundred=12), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_accepted_paths_leave_the_draft_cache_of_a_text_prefilled_at_once(
    backbone: Backbone, heads: Eagle3Heads, data: st.DataObject
) -> None:
    drafting = Drafting(heads, backbone.model)
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
        _check(drafting, slot, Drafting(heads, backbone.model, slots=1))


def _check(drafting: Drafting, slot: int, fresh: Drafting) -> None:
    """Checks a slot's entries and the tree drafted next against a text prefilled at once."""
    text = drafting.texts[slot]
    fresh.prefill(0, text[:-1], root=text[-1])
    for ours, expected in zip(drafting.entries(slot), fresh.entries(0), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=CLOSE)
    found, wanted = drafting.draft([slot], [BUSHY]), fresh.draft([0], [BUSHY])
    torch.testing.assert_close(found.log_probs, wanted.log_probs, rtol=0, atol=CLOSE)


def test_swapped_slots_go_on_with_each_others_texts(backbone: Backbone, heads: Eagle3Heads) -> None:
    drafting = Drafting(heads, backbone.model)
    drafting.prefill(0, random_tokens(8, seed=1), root=3)
    drafting.prefill(1, random_tokens(5, seed=2), root=4)
    drafting.swap()
    for slot in range(2):
        _check(drafting, slot, Drafting(heads, backbone.model, slots=1))


def test_a_captured_graph_does_not_run_them(heads: Eagle3Heads, backbone: Backbone, tmp_path: Path) -> None:
    assert not Drafting(heads, backbone.model).drafter.is_capturable
