"""The tree cache as transformers' attention layers use it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from entmtp.models.cache import TreeLayer


def transformers_cache(layers: Sequence[TreeLayer]) -> Cache:
    """A cache whose layer i writes to and reads from ``layers[i]``."""
    return Cache(layers=[_Layer(layer) for layer in layers])


class _Layer(CacheLayerMixin):
    """A layer of a tree cache, by the names of transformers.

    Attributes:
        tree_layer: the layer itself.
    """

    is_sliding = False

    def __init__(self, layer: TreeLayer) -> None:
        super().__init__()
        self.tree_layer = layer
        self.keys, self.values = layer.keys, layer.values
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Do nothing: all memory is allocated at construction."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.tree_layer.update(key_states, value_states)

    def get_seq_length(self) -> int:
        table = self.tree_layer.table
        return max(table.lengths[slot] for slot in table.slot_mapping.kv_range.slots)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        kv_range = self.tree_layer.table.slot_mapping.kv_range
        return kv_range.last - kv_range.first, 0

    def get_max_length(self) -> int:
        return self.tree_layer.table.capacity
