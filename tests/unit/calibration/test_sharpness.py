"""The sharpness that a calibration reads from traces, against the one that steps see."""

import pytest
import torch

from entmtp.decoding.state import DecodingState
from entmtp.decoding.timers import Stopwatch
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.trees.sharpness import RANKS, Sharpness
from tests.helpers.heads_with_caches import CLOSE, DRAFT_CACHE_KINDS, draft_cache_heads, draft_cache_model
from tests.helpers.small_cases import drafting, small_backbone, small_heads, small_prompt, traced

KINDS = ("medusa", "hydra", *DRAFT_CACHE_KINDS)


def attached(kind: str) -> tuple[Backbone, DraftHeads]:
    if kind in DRAFT_CACHE_KINDS:
        backbone: Backbone = build_backbone(draft_cache_model(kind))
        return backbone, draft_cache_heads(kind, backbone)
    backbone = small_backbone()
    return backbone, small_heads(kind, backbone)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_trace_has_the_sharpness_that_replays_and_real_steps_see(kind: str) -> None:
    backbone, heads = attached(kind)
    prompt, text = small_prompt(5, seed=2), small_prompt(9, seed=3)
    trace = traced(backbone, heads, prompt, text)
    expansion_at = drafting(backbone, heads, prompt, text)
    for position in (0, 4):
        recorded = Sharpness.of(trace.confidence[position, 0].tolist())
        replayed = expansion_at(position).next_level([0], RANKS)[1]
        assert Sharpness.of(replayed[0].tolist()) == pytest.approx(recorded, abs=10 * CLOSE)
    # A real step after the same tokens, whose root is then the text's token.
    state = DecodingState(backbone, heads, slots=1, capacity=64)
    root, _ = state.prefill(0, [*prompt, *text[:4]])
    own = traced(backbone, heads, prompt, [*text[:4], root, *text[5:]])
    drafted = state.expand([0], Stopwatch(backbone.device)).next_level([0], RANKS)[1]
    seen = Sharpness.of(drafted[0].tolist())
    assert seen == pytest.approx(Sharpness.of(own.confidence[4, 0].tolist()), abs=10 * CLOSE)
    assert seen.entropy > 0
