"""Texts drawn by sampling over trees, and how often the model would write each: exact, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import scipy
import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from entmtp.decoding.sampling import Sampler
from entmtp.decoding.sequence import bare_sequence
from entmtp.decoding.state import DecodingState
from entmtp.decoding.step import decode_step
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.policies.base import Policy
from entmtp.policies.eagle2 import Eagle2Policy
from entmtp.policies.goodput import GoodputPolicy
from entmtp.policies.ladder import Ladder, LadderPolicy
from entmtp.policies.policy_cost import FixedCost
from entmtp.policies.static import StaticPolicy
from entmtp.settings import SamplingParams
from entmtp.trees.topology import Topology
from tests.helpers.small_cases import SMALL_VOCAB, small_cost, small_dynamic_policy, small_predictor, small_prompt
from tests.helpers.tiny_models import TREES

LENGTH = 3
PROMPT = small_prompt(5, seed=3)
SHAPED = SamplingParams(temperature=0.8, top_p=0.9, repetition_penalty=1.3, max_tokens=LENGTH)
FREE = SamplingParams(max_tokens=LENGTH)
WIDE = Topology.of([*((rank,) for rank in range(5)), (0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (0, 0, 0)])
POLICIES: dict[str, Policy] = {
    "plain": StaticPolicy(Topology.root_only(), 8),
    "static": StaticPolicy(WIDE, 8),
    "ladder": LadderPolicy(Ladder((1.0, 1.7), (TREES["chain"], WIDE, TREES["root"]), 8), 0.05),
    "goodput": GoodputPolicy(small_predictor(), FixedCost(lambda batch, context: small_cost()), 8),
    "dynamic": small_dynamic_policy(per_node=0.3),
    "eagle2": Eagle2Policy(8),
}


@torch.inference_mode()
def next_chances(backbone: Backbone, texts: Sequence[Sequence[int]], params: SamplingParams) -> np.ndarray:
    """The target after each of the texts ``[texts, vocab]``, by transformers' processors on the model's own logits."""
    ids = torch.tensor([list(text) for text in texts], device=backbone.device)
    scores = backbone.model(ids).logits[:, -1]
    if params.repetition_penalty != 1:
        scores = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(ids, scores)
    if params.temperature != 1:
        scores = TemperatureLogitsWarper(params.temperature)(ids, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(ids, scores)
    chances: np.ndarray = scores.softmax(-1).double().cpu().numpy()
    return chances


def exact(backbone: Backbone, params: SamplingParams) -> dict[tuple[int, ...], float]:
    """The probability of every text of :data:`LENGTH` tokens."""
    texts: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(LENGTH):
        after = next_chances(backbone, [[*PROMPT, *text] for text in texts], params)
        texts = {
            (*text, token): chance * float(each)
            for (text, chance), chances in zip(texts.items(), after, strict=True)
            for token, each in enumerate(chances)
            if each > 0
        }
    return texts


def drawn(
    backbone: Backbone, heads: DraftHeads, policy: Policy, params: SamplingParams, batch: int, draws: int
) -> Counter[tuple[int, ...]]:
    """Counts of texts, each of a request of its own."""
    state = DecodingState(backbone, heads, batch, capacity=80)
    for slot in range(batch):
        state.prefill(slot, PROMPT)
    assert state.drafter is not None
    behind, logits = state.drafter.states.clone(), state.next_logits(0)
    counts: Counter[tuple[int, ...]] = Counter()
    for first in range(0, draws, batch):
        requests = []
        for slot in range(batch):
            state.cache.truncate(slot, len(PROMPT))
            state.drafter.states[slot] = behind[slot]
            sampler = Sampler(params.model_copy(update={"seed": first + slot}))
            sampler.observe_prompt(PROMPT, SMALL_VOCAB, backbone.device)
            root, uncertainty = state.start(slot, logits, sampler)
            requests.append(bare_sequence(slot, policy, root, uncertainty, sampler))
        while min(len(request.tokens) for request in requests) < LENGTH:
            decode_step(state, policy, requests)
        counts.update(tuple(request.tokens[:LENGTH]) for request in requests)
    return counts


def p_value(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """Of the counts, if the texts had these probabilities; rare texts are counted together."""
    draws = sum(counts.values())
    assert set(counts) <= set(expected), "a text came out that can't"
    often = [text for text, chance in expected.items() if chance * draws >= 8]
    seen = [counts[text] for text in often]
    wanted = [expected[text] * draws for text in often]
    if draws - sum(wanted) >= 8:
        seen, wanted = [*seen, draws - sum(seen)], [*wanted, draws - sum(wanted)]
    else:
        wanted = [each * sum(seen) / sum(wanted) for each in wanted]
    return float(scipy.stats.chisquare(seen, wanted).pvalue)
