"""Heads with a draft cache, of every kind, and a check of the cache's entries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from entmtp.decoding.state import DecodingState
from entmtp.heads.autoregressive.heads import AutoregressiveHeads
from entmtp.heads.base import DraftHeads
from entmtp.heads.dflash import DFlashHeads
from entmtp.heads.hydra_plus_plus_cache import HydraPlusPlusDrafter
from entmtp.methods import DFLASH, EAGLE3
from entmtp.models.backbone import Backbone
from entmtp.trees.topology import Topology
from tests.helpers.dflash_heads import dflash_heads, dspark_heads
from tests.helpers.eagle3_heads import eagle3_heads
from tests.helpers.hydra_plus_plus_heads import random_hydra_plus_plus_heads
from tests.helpers.native_models import MTP_TYPES, mtp_model, native_heads
from tests.helpers.small_cases import SMALL_VOCAB
from tests.helpers.tiny_models import tiny_model

PREFIX = "prefix-mlp"
DSPARK = "dspark"
DRAFT_CACHE_KINDS = (*MTP_TYPES, EAGLE3, PREFIX, DFLASH, DSPARK)
"""Native heads by their models' types, EAGLE-3, Hydra++, DFlash and DSpark heads."""

_HEADS: dict[str, Callable[[Backbone], DraftHeads]] = {
    EAGLE3: eagle3_heads,
    PREFIX: random_hydra_plus_plus_heads,
    DFLASH: dflash_heads,
    DSPARK: dspark_heads,
}

CLOSE = 2e-4
"""Absolute tolerance between two ways to compute a number, in float32 on any machine."""

BUSHY = Topology.of([(0,), (1,), (3,), (0, 0), (0, 2), (1, 0), (0, 2, 0), (0, 2, 1), (1, 0, 0), (1, 0, 0, 1)])
"""A tree with siblings, gaps between their ranks, and paths of every length up to four."""


def draft_cache_model(kind: str) -> PreTrainedModel:
    """A tiny model over a small vocabulary, for heads of a kind."""
    return mtp_model(kind) if kind in MTP_TYPES else tiny_model("llama", vocab_size=SMALL_VOCAB)


def draft_cache_heads(kind: str, backbone: Backbone) -> DraftHeads:
    """Random heads for such a model."""
    if kind in MTP_TYPES:
        return native_heads(backbone)
    return _HEADS[kind](backbone)


def draft_cache_entries(state: DecodingState, slot: int, length: int) -> list[torch.Tensor]:
    """Entries of the draft cache that the heads may read again, for the first ``length`` tokens of a slot.

    The drafter's own states are not among them: a slot that was started from a cached prefix has none yet.
    """
    if isinstance(state.drafter, HydraPlusPlusDrafter):
        layer_cache = state.cache.tree_layers[-1]
        assert layer_cache.keys is not None
        assert layer_cache.values is not None
        return [buffer[slot, :, 1 : length + 1] for buffer in (layer_cache.keys, layer_cache.values)]
    if isinstance(state.heads, DFlashHeads):
        own = state.cache.tree_layers[-state.heads.config.num_layers :]
        return [buffer[slot, :, 1 : length + 1] for layer in own for buffer in (layer.keys, layer.values)]
    assert isinstance(state.heads, AutoregressiveHeads)
    assert state.drafter is not None
    with torch.inference_mode():
        state.drafter.expand((slot,), state.root[slot : slot + 1])  # makes what may have been deferred
    count = state.heads.layers.count
    entries = []
    for layer, layer_cache in enumerate(state.cache.tree_layers[-count:]):
        for buffer in (layer_cache.keys, layer_cache.values):
            assert buffer is not None
            entries.append(buffer[slot, :, layer + 2 : length + 1])
        entries.append(state.cache.state_buffers[layer][slot, :, layer + 1 : length + 1])
    return entries


def check_draft_cache(state: DecodingState, slot: int, text: Sequence[int]) -> None:
    """Checks that a slot's draft cache equals that of ``text`` prefilled at once."""
    fresh = DecodingState(state.backbone, state.heads, slots=1, capacity=len(text) + 1)
    fresh.prefill_chunk(0, text)
    for ours, expected in zip(
        draft_cache_entries(state, slot, len(text)), draft_cache_entries(fresh, 0, len(text)), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=0, atol=CLOSE)
