"""Heads that read the states that enter some layers of the model, and what transformers' code says these are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from entmtp.decoding.state import DecodingState
from entmtp.heads.interface import AcceptedPaths
from entmtp.heads.medusa import MedusaConfig, MedusaHeads
from entmtp.heads.stateless import StatelessDrafter
from entmtp.models.backbone import Backbone
from entmtp.models.cache import BufferShape, DraftCacheLayout, TreeCache
from tests.helpers.small_cases import SMALL_VOCAB

LAYERS = 4
"""Layers of the models."""
READ = (2, 0, 3)
"""Layers whose inputs the heads read: neither in the model's order nor all."""
CLOSE = 2e-4
"""Absolute and relative tolerance between two ways to compute a number, in float32 on any machine."""


@torch.inference_mode()
def entering(model: PreTrainedModel, ids: Sequence[int], layers: Sequence[int] = READ) -> torch.Tensor:
    """The states ``[len(ids), layers * hidden_size]`` that enter ``layers``, by transformers' own account.

    It leaves hooks in the model, after which no fused kernels run it: build the backbone of another one.
    """
    output = model(input_ids=torch.tensor([list(ids)], device=model.device), output_hidden_states=True, use_cache=False)
    return torch.cat([output.hidden_states[layer][0] for layer in layers], dim=-1)


class FeatureHeads(MedusaHeads):
    """Independent heads that guess from the sum of the states that enter some layers."""

    layers: tuple[int, ...] = READ

    @property
    def feature_layers(self) -> tuple[int, ...]:
        return self.layers

    def head_states(self, hidden: torch.Tensor, heads: int) -> torch.Tensor:
        return super().head_states(hidden.unflatten(-1, (len(self.layers), -1)).sum(-2), heads)


class StoringHeads(FeatureHeads):
    """The same heads with a draft cache: the features of every token."""

    @property
    def cache_layout(self) -> DraftCacheLayout:
        return DraftCacheLayout(state_buffers=(BufferShape(1, self.feature_size, self.state_dtype),))

    def drafter(self, cache: TreeCache) -> StoringDrafter:
        return StoringDrafter(self, cache)


class StoringDrafter(StatelessDrafter):
    """Drafter that stores the features of the token at position p in row p + 1."""

    is_capturable = False

    def __init__(self, heads: StoringHeads, cache: TreeCache) -> None:
        super().__init__(heads, cache)
        self._cache = cache

    def prefill(self, slot: int, features: torch.Tensor, tokens: Sequence[int]) -> None:
        super().prefill(slot, features, tokens)
        end = self._cache.lengths[slot]
        self._cache.state_buffers[0][slot, 0, end - len(tokens) + 1 : end + 1] = features

    def append(self, slots: tuple[int, ...], accepted: AcceptedPaths) -> None:
        super().append(slots, accepted)
        table, counts = self._cache.table, accepted.counts
        index, at = table.index(slots), torch.arange(accepted.nodes.shape[1], device=counts.device)
        first = table.device_lengths[index] - counts + 1
        rows = (first[:, None] + at) * (at < counts[:, None])
        self._cache.state_buffers[0][index[:, None], 0, rows] = accepted.path_features


def feature_heads(
    backbone: Backbone, kind: type[FeatureHeads] = FeatureHeads, layers: tuple[int, ...] = READ
) -> FeatureHeads:
    """Attached heads with random weights that can guess every token of the small vocabulary."""
    heads = kind(
        MedusaConfig(
            hidden_size=backbone.hidden_size,
            vocab_size=SMALL_VOCAB,
            num_heads=4,
            inner_size=24,
            draft_vocab_size=SMALL_VOCAB,
        )
    )
    heads.layers = layers
    generator = torch.Generator().manual_seed(0)
    for parameter in heads.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
    return heads.attach(backbone)


def check_features(state: DecodingState, slot: int, model: PreTrainedModel, text: Sequence[int]) -> None:
    """Check what the drafter of a slot starts from, and what it has stored, after the committed ``text``."""
    assert state.drafter is not None
    expected = entering(model, text)
    torch.testing.assert_close(state.drafter.states[slot], expected[-1], rtol=CLOSE, atol=CLOSE)
    for buffer in state.cache.state_buffers:
        torch.testing.assert_close(buffer[slot, 0, 1 : len(text) + 1], expected, rtol=CLOSE, atol=CLOSE)
