"""Small cases with known answers: traces and banks made by hand, and models whose heads guess right now and then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from entmtp.calibration.policy_replay import ExpansionAt
from entmtp.calibration.rank_trace import rank_trace
from entmtp.decoding.engine import Engine
from entmtp.heads.base import DraftHeads
from entmtp.heads.checkpoint import KINDS
from entmtp.heads.interface import Expansion
from entmtp.heads.trained import TrainedHeads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.states import States
from entmtp.policies.base import Policy
from entmtp.policies.dynamic import DynamicPolicy
from entmtp.policies.policy_cost import FixedCost
from entmtp.policies.signals import entropy
from entmtp.policies.step_cost import StepCost
from entmtp.settings import EngineSettings, Kernels
from entmtp.trees.bank import Frontier, Provenance, TreeBank
from entmtp.trees.predictor import Predictor
from entmtp.trees.probability_calibration import ProbabilityCalibration, SharpnessScaling
from entmtp.trees.topology import Path
from entmtp.trees.trace import MISS, TRACED_RANKS, RankTrace
from tests.helpers.tiny_models import random_tokens, tiny_model

SMALL_VOCAB = 12
"""So few tokens that random heads are right in one of twelve guesses, and trees of some width accept something."""


def trace_of(rows: Sequence[Sequence[int]], entropies: Sequence[float] | None = None) -> RankTrace:
    """A trace with these true ranks per position."""
    values = [0.5] * len(rows) if entropies is None else list(entropies)
    ranks = torch.tensor(rows, dtype=torch.int32)
    return RankTrace(ranks, torch.tensor(values), torch.full((*ranks.shape, TRACED_RANKS), -0.5))


def drawn_trace(positions: int, chances: Sequence[float], heads: int, seed: int) -> RankTrace:
    """Independent ranks: rank r with probability ``chances[r]``, a miss otherwise."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.tensor([*chances, 1 - sum(chances)])
    ranks = torch.multinomial(weights, positions * heads, replacement=True, generator=generator)
    ranks = ranks.masked_fill(ranks == len(chances), MISS).reshape(positions, heads)
    entropy = torch.rand(positions, generator=generator)
    return RankTrace(ranks.to(torch.int32), entropy, -torch.rand(*ranks.shape, TRACED_RANKS, generator=generator))


def small_backbone(model_type: str = "llama", kernels: Kernels = "auto", **changes: Any) -> Backbone:
    """A tiny model over :data:`SMALL_VOCAB` tokens."""
    return build_backbone(tiny_model(model_type, vocab_size=SMALL_VOCAB, **changes), kernels)


def small_heads(kind: str, backbone: Backbone, seed: int = 0) -> TrainedHeads:
    """Attached heads with random weights that can guess every token."""
    heads_class = KINDS[kind]
    assert issubclass(heads_class, TrainedHeads)
    config = heads_class.config_class(
        hidden_size=backbone.hidden_size,
        vocab_size=SMALL_VOCAB,
        num_heads=4,
        inner_size=24,
        draft_vocab_size=SMALL_VOCAB,
    )
    heads = heads_class(config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in heads.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
    heads.draft_vocab.copy_(torch.randperm(SMALL_VOCAB, generator=generator))
    return heads.attach(backbone)


def small_prompt(count: int, seed: int = 0) -> list[int]:
    """Token ids without meaning, within the small vocabulary."""
    return random_tokens(count, seed, vocab=SMALL_VOCAB)


@torch.inference_mode()
def traced(backbone: Backbone, heads: DraftHeads, prompt: Sequence[int], text: Sequence[int]) -> RankTrace:
    """The rank trace of a text that the model really wrote after ``prompt``."""
    read = _read(backbone, heads, prompt, text)
    states = read.hidden[len(prompt) - 1 : -1]
    seen = heads.traced_text(read.features, torch.tensor([*prompt, *text]), begin=len(prompt))
    return rank_trace(heads, torch.tensor(text), seen, entropy(backbone.logits(states)))


def drafting(backbone: Backbone, heads: DraftHeads, prompt: Sequence[int], text: Sequence[int]) -> ExpansionAt:
    """The heads' expansion at each position of a text that the model wrote after ``prompt``."""
    features = _read(backbone, heads, prompt, text).features
    return heads.traced_text(features, torch.tensor([*prompt, *text]), begin=len(prompt)).expand


def _read(backbone: Backbone, heads: DraftHeads, prompt: Sequence[int], text: Sequence[int]) -> States:
    cache = backbone.new_cache(slots=1, capacity=len(prompt) + len(text) + 16)
    return backbone.prefill([*prompt, *text], 0, cache, heads.feature_layers)


class Scripted(Expansion):
    """Heads with scripted probabilities of each request and level. They record the parents of each call."""

    num_heads = 3

    def __init__(self, *scripts: Sequence[Sequence[float]]) -> None:
        self.scripts = scripts
        self.requested: list[list[int]] = []
        self._requests = list(range(len(scripts)))
        self._count = 1

    def next_level(self, parents: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        level = len(self.requested)
        self.requested.append(list(parents))
        self._requests = [self._requests[parent // self._count] for parent in parents]
        self._count = count = min(count, len(self.scripts[0][level]))
        tokens = 100 * level + torch.arange(len(parents) * count).reshape(len(parents), count)
        return tokens, torch.tensor([list(self.scripts[request][level])[:count] for request in self._requests]).log()


class Estimating(Scripted):
    """Scripted heads that estimate the log-odds of acceptance, of each request the same at every level."""

    def __init__(self, odds: Sequence[float], *scripts: Sequence[Sequence[float]]) -> None:
        super().__init__(*scripts)
        self._odds = odds

    def estimated_odds(self) -> torch.Tensor:
        return torch.tensor([self._odds[request] for request in self._requests])


def provenance(**changes: str) -> Provenance:
    """Provenance of a bank that nobody calibrated."""
    texts = {
        "task": "gsm8k",
        "heads_kind": "hydra",
        "model_fingerprint": "m" * 64,
        "heads_fingerprint": "h" * 64,
        "prompts_sha256": "0" * 64,
        "prompts_origin": "test",
        "hardware": "test",
        "date": "2026-01-01",
    }
    return Provenance.model_validate(texts | changes | {"prompts": 2, "tokens": 100, "versions": {}})


def frontier(steps: Sequence[tuple[Path, float]], share: float = 1.0) -> Frontier:
    """A frontier from paths and the probability that each adds."""
    gain = [1.0]
    for _, probability in steps:
        gain.append(gain[-1] + probability)
    return Frontier(paths=[path for path, _ in steps], gain=gain, share=share)


CALM: list[tuple[Path, float]] = [((0,), 0.9), ((0, 0), 0.8), ((0, 0, 0), 0.6), ((1,), 0.05)]
MIDDLE: list[tuple[Path, float]] = [((0,), 0.6), ((0, 0), 0.3), ((1,), 0.2), ((0, 1), 0.1)]
WILD: list[tuple[Path, float]] = [((0,), 0.3), ((1,), 0.15), ((2,), 0.1), ((3,), 0.05)]


def small_predictor() -> Predictor:
    """Entropy alone tells; the centres are those of the bank's bins."""
    bins: list[dict[Path, float]] = [dict(steps) for steps in (WILD, MIDDLE, CALM)]
    paths = list({path: None for one in bins for path in one})
    return Predictor(
        features=["entropy"],
        weights=[-1.0],
        bias=0.0,
        centres=[-1.2, -0.6, -0.2],
        shares=[0.2, 0.3, 0.5],
        paths=paths,
        probabilities=[[one.get(path, 0.0) for path in paths] for one in bins],
    )


def small_chances() -> ProbabilityCalibration:
    """Heads of which half can be believed."""
    return ProbabilityCalibration(slope=[0.5] * 4, offset=[-0.5] * 4, follow=[[0.5, 0.2, 0.1, 0.05]] * 4)


def small_sharp_chances() -> ProbabilityCalibration:
    """The same heads, which can be believed more where they are surer."""
    scaling = SharpnessScaling(slope=[0.5] * 4, offset=[-1.1] * 4, entropy=[0.2] * 4, margin=[0.3] * 4)
    return small_chances().model_copy(update={"sharpness": scaling})


def small_estimating_chances() -> ProbabilityCalibration:
    """The same heads, which can be believed more where they estimate so."""
    chances = small_sharp_chances()
    assert chances.sharpness is not None
    scaling = chances.sharpness.model_copy(update={"estimated_odds": [0.4] * 4})
    return chances.model_copy(update={"sharpness": scaling})


def small_bank(**changes: str) -> TreeBank:
    """Three entropy bins; the calmer, the deeper the trees that pay."""
    return TreeBank(
        provenance=provenance(**changes),
        entropy_window=8,
        thresholds=[0.4, 0.9],
        overall=frontier(MIDDLE),
        shallower=[],
        bins=[frontier(CALM, 0.5), frontier(MIDDLE, 0.3), frontier(WILD, 0.2)],
        predictor=small_predictor(),
        chances=small_chances(),
    )


def small_cost(per_node: float = 0.05, per_level: float = 0.05) -> StepCost:
    """Steps of 20 ms, and what their nodes and levels add."""
    drafts = [per_level * depth for depth in (1, 2, 3, 4)]
    return StepCost(
        nodes=[0, 63],
        verify_ms=[20.0, 20.0 + 63 * per_node],
        narrow_draft_ms=drafts,
        wide_draft_ms=drafts,
        wide_nodes=63,
        hardware="test",
    )


def small_dynamic_policy(per_node: float = 0.05, per_level: float = 0.05) -> DynamicPolicy:
    """Expansion level by level at the costs of :func:`small_cost`, whatever the batch."""
    cost = small_cost(per_node, per_level)
    return DynamicPolicy(small_predictor(), small_chances(), FixedCost(lambda batch, context: cost), 8)


def single_engine(backbone: Backbone, heads: DraftHeads | None, policy: Policy) -> Engine:
    """An engine for one request at a time, of any length that the model can take."""
    return Engine(backbone, heads, policy, EngineSettings.for_one())
