"""Texts drawn over trees come as often as the model's own distribution says: exact probabilities against counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from entmtp.decoding import acceptance, sampling
from entmtp.decoding.sampling import Sampler
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.settings import SamplingParams
from entmtp.trees.batch import TreeBatch
from tests.helpers.dflash_heads import dflash_heads, dspark_heads
from tests.helpers.eagle3_heads import eagle3_heads
from tests.helpers.sampled_texts import FREE, POLICIES, SHAPED, drawn, exact, p_value
from tests.helpers.small_cases import SMALL_VOCAB
from tests.helpers.small_fixtures import backbone_fixture, heads_fixture

__all__ = ["backbone_fixture", "heads_fixture"]

BATCH = 100
"""Steps of many requests cost little more than steps of one."""


OF_EAGLE3 = ("static", "dynamic", "eagle2")
"""Policies that draw with EAGLE-3 heads too: a tree that is filled, and two that are expanded."""


@pytest.fixture(scope="module", name="eagle3")
def eagle3_fixture(backbone: Backbone) -> DraftHeads:
    return eagle3_heads(backbone)


@pytest.mark.parametrize("params", [FREE, SHAPED], ids=["free", "shaped"])
@pytest.mark.parametrize("name", list(POLICIES))
def test_texts_come_as_often_as_the_model_would_write_them(
    name: str, params: SamplingParams, backbone: Backbone, heads: DraftHeads
) -> None:
    counts = drawn(backbone, heads, POLICIES[name], params, BATCH, draws=2_000)
    assert p_value(counts, exact(backbone, params)) > 1e-3


def test_texts_over_eagle3_heads_come_as_often_as_the_model_would_write_them(
    backbone: Backbone, eagle3: DraftHeads
) -> None:
    counts = drawn(backbone, eagle3, POLICIES["eagle2"], SHAPED, BATCH, draws=1_000)
    assert p_value(counts, exact(backbone, SHAPED)) > 1e-3


@pytest.mark.parametrize("name", ["static", "dynamic"])
@pytest.mark.parametrize("make", [dflash_heads, dspark_heads])
def test_texts_over_blocks_come_as_often_as_the_model_would_write_them(
    make: Callable[[Backbone], DraftHeads], name: str, backbone: Backbone
) -> None:
    counts = drawn(backbone, make(backbone), POLICIES[name], SHAPED, BATCH, draws=1_000)
    assert p_value(counts, exact(backbone, SHAPED)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", OF_EAGLE3)
def test_fifty_thousand_texts_over_eagle3_heads_come_as_often_as_the_model_would_write_them(
    name: str, batch: int, backbone: Backbone, eagle3: DraftHeads
) -> None:
    counts = drawn(backbone, eagle3, POLICIES[name], SHAPED, batch, draws=50_000)
    assert p_value(counts, exact(backbone, SHAPED)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", list(POLICIES))
def test_fifty_thousand_texts_come_as_often_as_the_model_would_write_them(
    name: str, batch: int, backbone: Backbone, heads: DraftHeads
) -> None:
    counts = drawn(backbone, heads, POLICIES[name], SHAPED, batch, draws=50_000)
    assert p_value(counts, exact(backbone, SHAPED)) > 1e-3


def test_a_root_by_argmax_would_be_noticed(
    backbone: Backbone, heads: DraftHeads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy_after_trees(logits: torch.Tensor, trees: TreeBatch, samplers: Sequence[Sampler]) -> torch.Tensor:
        return logits.argmax(-1)

    monkeypatch.setattr(acceptance, "choose_tokens", greedy_after_trees)
    counts = drawn(backbone, heads, POLICIES["static"], FREE, BATCH, draws=2_000)
    assert p_value(counts, exact(backbone, FREE)) < 1e-12


def test_children_accepted_independently_would_be_noticed(
    backbone: Backbone, heads: DraftHeads, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = acceptance.matches_choice
    generator = torch.Generator().manual_seed(0)
    seen: list[torch.Tensor] = []
    process_logits = sampling.process_logits

    def recording(
        logits: torch.Tensor, tokens: torch.Tensor, trees: TreeBatch, samplers: Sequence[Sampler]
    ) -> torch.Tensor:
        seen.append(process_logits(logits, tokens, trees, samplers))
        return seen[-1]

    def independently(tokens: torch.Tensor, choice: torch.Tensor, trees: TreeBatch) -> torch.Tensor:
        assert real(tokens, choice, trees).shape == tokens.shape
        parents = trees.parent[..., None].expand(-1, -1, SMALL_VOCAB)
        chance = seen[-1].softmax(-1).gather(1, parents).gather(-1, tokens[..., None])[..., 0]
        return torch.rand(tokens.shape, generator=generator) < chance

    monkeypatch.setattr(acceptance, "process_logits", recording)
    monkeypatch.setattr(acceptance, "matches_choice", independently)
    counts = drawn(backbone, heads, POLICIES["static"], FREE, BATCH, draws=2_000)
    assert p_value(counts, exact(backbone, FREE)) < 1e-12
