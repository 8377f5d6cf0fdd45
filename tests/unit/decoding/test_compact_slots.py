"""Running requests are moved into the first slots, with all their state, and prompts share one budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from entmtp.decoding.engine import Engine
from entmtp.decoding.request import Request
from entmtp.decoding.state import DecodingState
from entmtp.heads.base import DraftHeads
from entmtp.methods import DFLASH
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.policies.static import StaticPolicy
from entmtp.settings import EngineSettings, SamplingParams
from entmtp.trees.batch import TreeBatch
from tests.helpers.heads_with_caches import DRAFT_CACHE_KINDS, PREFIX, draft_cache_heads, draft_cache_model
from tests.helpers.small_cases import small_prompt
from tests.helpers.tiny_models import CONTEXT, TREES, greedy


def params(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=tokens)


def check_swap(state: DecodingState) -> None:
    """Check that a swap of two slots also swaps the states that they draft from."""
    for slot, prompt in enumerate((small_prompt(9, seed=1), small_prompt(6, seed=2))):
        state.prefill(slot, prompt)
    trees = TreeBatch.of([TREES["bushy"]])

    def contents(slot: int) -> tuple[int, list[float], list[int], int]:
        with torch.inference_mode():
            (drafted,) = state.draft((slot,), trees)
        assert state.drafter is not None
        return (
            int(state.root[slot]),
            state.drafter.states[slot].tolist(),
            drafted[0].tolist(),
            state.cache.lengths[slot],
        )

    before = [contents(0), contents(1)]
    assert before[0][:3] != before[1][:3]
    state.swap(0, 1)
    assert [contents(1), contents(0)] == before


def test_two_slots_exchange_all_their_state(backbone: Backbone, heads: DraftHeads) -> None:
    check_swap(DecodingState(backbone, heads, slots=2, capacity=64))


@pytest.mark.parametrize("kind", [DRAFT_CACHE_KINDS[0], PREFIX, DFLASH])
def test_two_slots_exchange_draft_caches_too(kind: str) -> None:
    backbone = build_backbone(draft_cache_model(kind), kernels="eager")
    check_swap(DecodingState(backbone, draft_cache_heads(kind, backbone), slots=2, capacity=64))


def test_requests_that_still_run_move_into_the_first_slots(
    backbone: Backbone, heads: DraftHeads, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(backbone, heads, StaticPolicy(TREES["bushy"], 8), EngineSettings(slots=3, context=CONTEXT))
    stepped: list[tuple[int, ...]] = []
    real = DecodingState.batch_slots

    def batch_slots(state: DecodingState, slots: tuple[int, ...]) -> tuple[int, ...]:
        stepped.append(slots)
        return real(state, slots)

    monkeypatch.setattr(DecodingState, "batch_slots", batch_slots)
    prompts = [small_prompt(5, seed=at) for at in range(3)]
    done = [engine.submit(Request(str(at), prompt, params(20))) for at, prompt in enumerate(prompts)]
    engine.step()
    assert stepped == [(0, 1, 2)]
    engine.cancel("0")
    engine.step()
    assert stepped[-1] == (0, 1)
    while not engine.idle:
        engine.step()
    assert all(slots == tuple(range(len(slots))) for slots in stepped)
    for at in (1, 2):
        assert done[at].tokens == greedy(backbone.model, prompts[at], 20)


def test_prompts_share_the_tokens_that_are_read_between_two_steps(
    backbone: Backbone, heads: DraftHeads, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = EngineSettings(slots=4, context=CONTEXT, prefill_tokens=7, prefix_reuse=False)
    engine = Engine(backbone, heads, StaticPolicy(TREES["chain"], 8), limits)
    parts: list[int] = []
    real = DecodingState.prefill_chunk

    def read(state: DecodingState, slot: int, tokens: Sequence[int]) -> None:
        parts.append(len(tokens))
        real(state, slot, tokens)

    monkeypatch.setattr(DecodingState, "prefill_chunk", read)
    prompts = [small_prompt(5, seed=at) for at in range(4)]
    done = [engine.submit(Request(str(at), prompt, params(20))) for at, prompt in enumerate(prompts)]
    between = []
    for _ in range(3):
        parts.clear()
        engine.step()
        between.append(list(parts))
    assert between == [[5, 2], [3, 4], [1, 5]]
    while not engine.idle:
        engine.step()
    for one, prompt in zip(done, prompts, strict=True):
        assert one.tokens == greedy(backbone.model, prompt, 20)
