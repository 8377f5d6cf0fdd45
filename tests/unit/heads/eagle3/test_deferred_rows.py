"""Steps that draft nothing leave work to the next draft, which is then the same as without them."""

from collections.abc import Callable

import pytest
import torch

from entmtp.decoding.sampling import GREEDY, Sampler
from entmtp.decoding.state import DecodingState
from entmtp.decoding.timers import Stopwatch
from entmtp.heads.eagle3 import Eagle3Heads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.kernels import compiled
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Topology
from tests.helpers.eagle3_checkpoints import eagle3
from tests.helpers.eagle3_drafting import Drafting, deep_model, imported_eagle3, seen_model
from tests.helpers.heads_with_caches import BUSHY, CLOSE
from tests.helpers.tiny_models import TREES, random_tokens

pytestmark = pytest.mark.skipif(compiled.unsupported_reason() is not None, reason="no C++ compiler")

ROOT = Topology.root_only()


@pytest.fixture(scope="module")
def backbone(unrounded: None) -> Backbone:
    return build_backbone(deep_model(), "fused")


@pytest.fixture(scope="module")
def heads(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Eagle3Heads:
    checkpoint = eagle3(seen_model(backbone), "speculators", layers=2, norm_before_residual=True)
    return imported_eagle3(checkpoint, backbone, tmp_path_factory.mktemp("heads"))


@pytest.fixture
def drafting(heads: Eagle3Heads, backbone: Backbone) -> Drafting:
    """Two slots with prompts, the first of which has three deferred tokens."""
    found = Drafting(heads, backbone.model)
    found.prefill(0, random_tokens(6, seed=1), root=3)
    found.prefill(1, random_tokens(9, seed=2), root=4)
    for root in (5, 6, 7):
        found.accept([0], found.draft([0], [ROOT]), [ROOT], [0], [root])
    return found


def deferred(drafting: Drafting, slot: int) -> int:
    """Tokens of a slot whose keys and values are still to be made."""
    return int((drafting.cache.state_buffers[1][slot] > 0).sum())


def check(drafting: Drafting, fresh: Drafting, *slots: int) -> None:
    """Checks the tree drafted next, and the entries, against a text prefilled at once."""
    found = drafting.draft(slots, [BUSHY] * len(slots))
    for row, slot in enumerate(slots):
        text = drafting.texts[slot]
        fresh.prefill(0, text[:-1], root=text[-1])
        wanted = fresh.draft([0], [BUSHY])
        torch.testing.assert_close(found.log_probs[row], wanted.log_probs[0], rtol=0, atol=CLOSE)
        for ours, expected in zip(drafting.entries(slot), fresh.entries(0), strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=CLOSE)
        fresh.cache.truncate(0)


@pytest.fixture
def fresh(heads: Eagle3Heads, backbone: Backbone) -> Drafting:
    return Drafting(heads, backbone.model, slots=1)


def test_deferred_tokens_are_read_before_the_next_draft(drafting: Drafting, fresh: Drafting) -> None:
    assert deferred(drafting, 0) == 3
    check(drafting, fresh, 0, 1)
    assert deferred(drafting, 0) == 0


def test_a_request_that_does_not_draft_is_read_before_its_path_is_appended(drafting: Drafting, fresh: Drafting) -> None:
    trees = [BUSHY, ROOT]
    drafting.accept([1, 0], drafting.draft([1, 0], trees), trees, [5, 0], [8, 9])
    check(drafting, fresh, 0, 1)


@pytest.mark.parametrize("length", [4, 8, 9])
def test_a_prompt_goes_on_after_deferred_tokens(drafting: Drafting, fresh: Drafting, length: int) -> None:
    drafting.begin_again(0, 1, length)
    check(drafting, fresh, 1)


def test_a_path_covers_what_was_deferred_of_an_earlier_text(drafting: Drafting, fresh: Drafting) -> None:
    drafting.begin_again(1, 0, 3)
    assert deferred(drafting, 0) == 3  # in free rows
    chain = TREES["chain"]
    drafting.accept([0], drafting.draft([0], [chain]), [chain], [chain.nodes], [2])
    drafting.accept([0], drafting.draft([0], [chain]), [chain], [chain.nodes], [2])
    drafting.accept([0], drafting.draft([0], [ROOT]), [ROOT], [0], [3])
    check(drafting, fresh, 0)


def test_a_prompt_covers_what_was_deferred_of_an_earlier_text(drafting: Drafting, fresh: Drafting) -> None:
    drafting.cache.truncate(0)
    drafting.prefill(0, random_tokens(9, seed=3), root=5)
    check(drafting, fresh, 0)


def drafted_at_once(state: DecodingState) -> list[int]:
    return state.draft((0,), TreeBatch.of([BUSHY]))[0].flatten().tolist()


def expanded(state: DecodingState) -> list[int]:
    expansion = state.expand((0,), Stopwatch(state.backbone.device))
    return [token for _ in range(2) for token in expansion.next_level([0], 3)[0].flatten().tolist()]


@pytest.mark.parametrize("draft", [drafted_at_once, expanded])
@torch.inference_mode()
def test_a_failed_step_drafts_the_same_again(
    draft: Callable[[DecodingState], list[int]], heads: Eagle3Heads, backbone: Backbone
) -> None:
    state = DecodingState(backbone, heads, slots=1, capacity=60)
    state.prefill_chunk(0, random_tokens(7))
    state.start(0, state.next_logits(0), Sampler(GREEDY))
    assert state.drafter is not None
    state.drafter.states.fill_(-1.0)  # as before what was deferred is read
    state.cache.state_buffers[1][0, 0, 7] = 1 + int(state.root[0])
    drafted: list[list[int]] = []

    def failing_step() -> None:
        with state.all_or_nothing():
            drafted.append(draft(state))
            raise MemoryError

    for _ in range(2):
        with pytest.raises(MemoryError):
            failing_step()
    assert drafted[0] == drafted[1]
