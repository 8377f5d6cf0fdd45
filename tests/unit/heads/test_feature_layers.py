"""Heads that read the states that enter some layers get those of the right tokens through the whole engine."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch
from transformers import PreTrainedModel

from entmtp.decoding.engine import Engine
from entmtp.decoding.graphs import Graphs
from entmtp.decoding.sequence import Sequence, bare_sequence
from entmtp.decoding.state import DecodingState
from entmtp.decoding.step import decode_step
from entmtp.errors import EntMTPError
from entmtp.models.backbone import Backbone
from entmtp.policies.base import Policy
from entmtp.policies.static import SequencePolicy, StaticPolicy
from entmtp.settings import EngineSettings, Kernels
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Topology
from tests.helpers.arrivals import come_and_go
from tests.helpers.heads_with_features import (
    LAYERS,
    READ,
    FeatureHeads,
    StoringHeads,
    check_features,
    feature_heads,
)
from tests.helpers.small_cases import SMALL_VOCAB, small_backbone, small_dynamic_policy, small_heads, small_prompt
from tests.helpers.taped_graphs import Taped
from tests.helpers.tiny_models import CONTEXT, TREES, greedy, tiny_model

WIDE = Topology.of([*((rank,) for rank in range(6)), *((rank, child) for rank in range(4) for child in range(4))])
"""Over twelve tokens, half of which it guesses, so that random heads are right now and then."""
POLICIES: dict[str, Policy] = {
    "static": StaticPolicy(WIDE, 8),
    "sequence": SequencePolicy([WIDE, TREES["root"], TREES["bushy"], TREES["chain"]], 8),
    "dynamic": small_dynamic_policy(0.01, 0.01),
}


@cache
def plain() -> PreTrainedModel:
    return tiny_model("llama", vocab_size=SMALL_VOCAB, num_hidden_layers=LAYERS)


@cache
def backbone_with(kernels: Kernels) -> Backbone:
    return small_backbone("llama", kernels, num_hidden_layers=LAYERS)


def running(state: DecodingState, policy: Policy, prompts: list[list[int]]) -> list[Sequence]:
    """Sequences whose prompts were read in two parts."""
    sequences = []
    for slot, prompt in enumerate(prompts):
        state.prefill_chunk(slot, prompt[:3])
        check_features(state, slot, plain(), prompt[:3])
        root, entropy = state.prefill(slot, prompt)
        check_features(state, slot, plain(), prompt)
        sequences.append(bare_sequence(slot, policy, root, entropy))
    return sequences


@pytest.mark.parametrize(("kernels", "captured"), [("auto", False), ("eager", False), ("eager", True)])
@pytest.mark.parametrize("kind", [FeatureHeads, StoringHeads])
def test_after_each_step_the_drafter_has_the_features_of_the_committed_text(
    kernels: Kernels, kind: type[FeatureHeads], captured: bool
) -> None:
    backbone = backbone_with(kernels)
    state = DecodingState(backbone, feature_heads(backbone, kind), slots=3, capacity=CONTEXT)
    if captured:
        state.graphs = Graphs(Taped())
    prompts = [small_prompt(length, seed=length) for length in (17, 9)]
    sequences = running(state, POLICIES["static"], prompts)
    for _ in range(12):
        decode_step(state, POLICIES["static"], sequences)
        for prompt, sequence in zip(prompts, sequences, strict=True):
            check_features(state, sequence.slot, plain(), [*prompt, *sequence.tokens])
    for prompt, sequence in zip(prompts, sequences, strict=True):
        assert sequence.tokens == greedy(plain(), prompt, len(sequence.tokens))
        assert any(len(step.path) > 0 for step in sequence.completion.steps), "nothing was accepted"
    assert state.graphs.disabled_reason is None
    assert (state.graphs.captures > 0) == captured


@pytest.mark.parametrize("kernels", ["auto", "eager"])
@pytest.mark.parametrize("kind", [FeatureHeads, StoringHeads])
@pytest.mark.parametrize("policy", list(POLICIES))
def test_requests_that_come_and_go_write_the_models_own_text(
    kernels: Kernels, kind: type[FeatureHeads], policy: str
) -> None:
    backbone = backbone_with(kernels)
    settings = EngineSettings(slots=2, context=CONTEXT, prefill_tokens=7, prefix_reuse=True)
    engine = Engine(backbone, feature_heads(backbone, kind), POLICIES[policy], settings)
    shared = small_prompt(8, seed=50)
    prompts = [[*shared, *small_prompt(length, seed=length)] for length in (5, 12, 1, 7)]
    done = come_and_go(engine, prompts, [20] * 4, random.Random(0))
    for at, prompt in enumerate(prompts):
        assert done[at].tokens == greedy(plain(), prompt, 20)
    assert any(completion.accepted for completion in done.values()), "nothing was accepted: the case shows nothing"
    assert any(completion.reused_tokens for completion in done.values())


def test_a_state_that_is_not_finite_ends_its_own_request_alone() -> None:
    backbone = backbone_with("auto")
    state = DecodingState(backbone, feature_heads(backbone, StoringHeads), slots=2, capacity=CONTEXT)
    prompts = [small_prompt(length, seed=length) for length in (6, 9)]
    sequences = running(state, POLICIES["static"], prompts)
    for pool in state.cache.pools.values():
        pool[: 2 * LAYERS, 0, :, 1:7] = float("nan")  # the first request's keys and values
        break
    decode_step(state, POLICIES["static"], sequences)
    assert [sequence.finite for sequence in sequences] == [False, True]
    check_features(state, 1, plain(), [*prompts[1], *sequences[1].tokens])


@pytest.mark.parametrize("kernels", ["auto", "eager"])
@torch.inference_mode()
def test_heads_without_feature_layers_read_the_decoder_states_themselves(kernels: Kernels) -> None:
    backbone = backbone_with(kernels)
    heads = small_heads("hydra", backbone)
    assert heads.feature_size == backbone.hidden_size
    state = DecodingState(backbone, heads, slots=1, capacity=CONTEXT)
    state.prefill(0, small_prompt(9))
    trees = TreeBatch.of([TREES["bushy"]])
    (tokens,) = state.draft((0,), trees)
    _, hidden, features = state.verify(tokens, state.cache.kv_range([0], trees.width, padded=False), trees)
    assert features is hidden


@pytest.mark.parametrize("layers", [(0, LAYERS), (-1,)], ids=str)
@pytest.mark.parametrize("kernels", ["auto", "eager"])
def test_heads_for_a_deeper_model_are_refused(layers: tuple[int, ...], kernels: Kernels) -> None:
    with pytest.raises(EntMTPError, match=rf"feature_layers: {layers[-1]} is not one of the model's {LAYERS} layers"):
        feature_heads(backbone_with(kernels), layers=layers)


@torch.inference_mode()
def test_arms_with_and_without_features_share_a_backbone() -> None:
    backbone = backbone_with("eager")
    states = [DecodingState(backbone, heads, 1, CONTEXT) for heads in (feature_heads(backbone), None)]
    for _ in range(2):
        for state in states:
            state.cache.truncate(0)
            state.prefill_chunk(0, small_prompt(9))
    check_features(states[0], 0, plain(), small_prompt(9))
    assert states[0].feature_layers == READ
    assert torch.equal(states[0].last_hidden, states[1].last_hidden)
