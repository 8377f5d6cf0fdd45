"""The draft cache of a text is the same however its tokens were committed."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entmtp.decoding.acceptance import Accepted
from entmtp.decoding.sampling import GREEDY, Sampler
from entmtp.decoding.state import DecodingState
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.trees.batch import TreeBatch
from tests.helpers.examples import examples
from tests.helpers.heads_with_caches import (
    BUSHY,
    CLOSE,
    DRAFT_CACHE_KINDS,
    check_draft_cache,
    draft_cache_heads,
    draft_cache_model,
)
from tests.helpers.small_cases import SMALL_VOCAB, small_prompt
from tests.helpers.tiny_models import topologies


@pytest.fixture(scope="module", params=DRAFT_CACHE_KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def backbone(kind: str, unrounded: None) -> Backbone:
    return build_backbone(draft_cache_model(kind))


@pytest.fixture(scope="module")
def heads(kind: str, backbone: Backbone) -> DraftHeads:
    return draft_cache_heads(kind, backbone)


@given(st.data())
@settings(max_examples=examples(per_hundred=12), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_accepted_paths_leave_the_draft_cache_of_a_text_prefilled_at_once(
    backbone: Backbone, heads: DraftHeads, data: st.DataObject
) -> None:
    state = DecodingState(backbone, heads, slots=2, capacity=120)
    texts = []
    for slot in range(2):
        prompt = small_prompt(data.draw(st.integers(1, 12), "prompt"), seed=data.draw(st.integers(0, 9)))
        cut = data.draw(st.integers(1, len(prompt)), "part")
        state.prefill_chunk(slot, prompt[:cut])
        if prompt[cut:]:
            state.prefill_chunk(slot, prompt[cut:])
        state.start(slot, state.next_logits(slot), Sampler(GREEDY))
        texts.append(prompt)
    for _ in range(data.draw(st.integers(1, 4), "steps")):
        slots = data.draw(st.sampled_from([(0,), (1,), (0, 1), (1, 0)]), "slots")
        trees = TreeBatch.of([data.draw(topologies(), "tree") for _ in slots])
        tokens = _accept(state, slots, trees, data)
        for slot, its in zip(slots, tokens, strict=True):
            texts[slot] = [*texts[slot], *its]
        if data.draw(st.booleans(), "begin again"):
            source, target = data.draw(st.permutations([0, 1]), "copied")
            texts[target] = texts[source][: data.draw(st.integers(1, len(texts[source])), "shared")]
            state.cache.copy_prefix(source, target, len(texts[target]))
            texts[target] = [*texts[target], *(more := small_prompt(3))]
            state.prefill_chunk(target, more)
            state.start(target, state.next_logits(target), Sampler(GREEDY))
    for slot in range(2):
        check_draft_cache(state, slot, texts[slot])
        root = int(state.root[slot])
        fresh = DecodingState(backbone, heads, 1, 120)
        fresh.prefill_chunk(0, texts[slot])
        with torch.inference_mode():
            assert fresh.drafter is not None
            fresh.drafter.start(0, torch.tensor(root))
            expected = fresh.drafter.draft((0,), torch.tensor([root]), TreeBatch.of([BUSHY]))
            assert state.drafter is not None
            found = state.drafter.draft((slot,), state.root[slot : slot + 1], TreeBatch.of([BUSHY]))
        torch.testing.assert_close(found.log_probs, expected.log_probs, rtol=0, atol=CLOSE)


@torch.inference_mode()
def _accept(state: DecodingState, slots: tuple[int, ...], trees: TreeBatch, data: st.DataObject) -> list[list[int]]:
    """Runs a step that accepts any path and takes any token as the next root; returns the accepted tokens."""
    (tokens,) = state.draft(slots, trees)
    kv_range = state.cache.kv_range(slots, trees.width, padded=trees.shape.padded)
    _, _, features = state.verify(tokens, kv_range, trees)
    paths = [topology.lineages[data.draw(st.integers(0, topology.nodes), "accepted")] for topology in trees.topologies]
    width = trees.max_depth + 1
    # Entries after a path are ignored, but must be ascending node numbers.
    nodes = torch.tensor([[*path, *range(path[-1] + 1, path[-1] + 1 + width)][:width] for path in paths])
    nodes = nodes.clamp(max=trees.width - 1)
    roots = torch.tensor([data.draw(st.integers(0, SMALL_VOCAB - 1), "root") for _ in slots])
    report = torch.ones(len(slots), 6 + trees.max_depth, dtype=torch.int64)
    accepted = Accepted(nodes, torch.tensor([len(path) for path in paths]), roots, report)
    state.commit(slots, tokens, features, accepted)
    accepted = state.append(slots, tokens, features, accepted)
    assert accepted.report[:, 0].all()
    state.cache.sync_lengths(slots, [len(path) for path in paths])
    return [tokens[row, list(path)].tolist() for row, path in enumerate(paths)]
