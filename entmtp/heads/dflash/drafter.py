"""Draft cache of DFlash heads and their drafter.

The cache row of a token has the layers' keys and values of it, which are made from the model's states. A block's own
keys and values go to the rows after the text, where the next step overwrites them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from entmtp.heads.autoregressive.expansion import draft_trees
from entmtp.heads.dflash.expansion import DFlashExpansion
from entmtp.heads.dflash.interface import BlockHeads
from entmtp.heads.interface import AcceptedPaths, Drafter, Proposal
from entmtp.models.backbone import PREFILL_CHUNK
from entmtp.models.cache import KvRange, TreeCache
from entmtp.models.masks import AttentionWindow
from entmtp.trees.batch import TreeBatch


class DFlashDrafter(Drafter):
    """Drafter that runs a block after each slot's text.

    Attributes:
        states: ``[slots, hidden_size]`` what was stored last of each slot, which shows whether it is finite. A block
            starts from the root and the draft cache alone.
    """

    def __init__(self, heads: BlockHeads, cache: TreeCache) -> None:
        self.cache = cache
        self._heads, self._layers = heads, heads.layers
        self._layer_caches = cache.tree_layers[-len(heads.layers.shapes) :]
        shape = len(cache.lengths), heads.config.hidden_size
        self.states = torch.zeros(shape, dtype=heads.layers.dtype, device=cache.table.device)

    def prefill(self, slot: int, features: torch.Tensor, tokens: Sequence[int]) -> None:
        first = self.cache.lengths[slot] - len(tokens)
        for chunk in features.split(PREFILL_CHUNK):
            start = torch.tensor([first], device=features.device)
            real = torch.ones(1, len(chunk), dtype=torch.bool, device=features.device)
            self.states[slot] = self._store((slot,), start, chunk[None], real)[0, -1]
            first += len(chunk)

    def start(self, slot: int, root: torch.Tensor) -> None:
        """Does nothing: a token's keys and values need the model's states of it."""

    def append(self, slots: tuple[int, ...], accepted: AcceptedPaths) -> None:
        index, counts = self.cache.table.index(slots), accepted.counts
        first = self.cache.table.device_lengths[index] - counts
        real = torch.arange(accepted.nodes.shape[1], device=counts.device) < counts[:, None]
        contexts = self._store(slots, first, accepted.path_features, real)
        self.states[index] = contexts[torch.arange(len(slots), device=index.device), counts - 1]

    def draft(self, slots: tuple[int, ...], roots: torch.Tensor, trees: TreeBatch) -> Proposal:
        drafting = [row for row, topology in enumerate(trees.topologies) if topology.nodes]
        states = self._block_states(tuple(slots[row] for row in drafting), roots[drafting])
        expansion = DFlashExpansion(self._heads, states[:, : trees.shape.depth], roots[drafting])
        return draft_trees(expansion, drafting, roots, trees)

    def expand(self, slots: tuple[int, ...], roots: torch.Tensor) -> DFlashExpansion:
        return DFlashExpansion(self._heads, self._block_states(slots, roots), roots)

    @torch.inference_mode()
    def run_blocks(
        self, slots: tuple[int, ...], roots: torch.Tensor, positions: torch.Tensor, start: torch.Tensor
    ) -> torch.Tensor:
        """States ``[batch, n, depths, hidden_size]`` that guess after ``roots [batch, n]`` at ``positions [batch, n]``.

        Each block attends to the tokens before its root and to itself. Cache rows after row ``start [batch]`` are free.
        """
        config, (batch, count) = self._heads.config, roots.shape
        size, device = config.block_size, roots.device
        tokens = torch.full((batch, count, size), config.mask_token, device=device)
        tokens[:, :, 0] = roots
        at = (positions[..., None] + torch.arange(size, device=device)).flatten(1)
        block = torch.arange(count, device=device).repeat_interleave(size)
        window = AttentionWindow(
            prefix_lengths=positions.repeat_interleave(size, dim=1),
            start=start,
            tree_mask=(block == block[:, None]).expand(batch, -1, -1),
            positions=at,
            tree_positions=at,
            real=torch.ones(batch, count * size, dtype=torch.bool, device=device),
        )
        kv_range = self.cache.kv_range(slots, count * size, padded=False)
        self.cache.map_slots(kv_range, window.real, start)
        states = self._layers.forward(tokens.flatten(1), at, window.visible(kv_range), self._layer_caches)
        return states.unflatten(1, (count, size))[:, :, -config.num_heads :]

    def _block_states(self, slots: tuple[int, ...], roots: torch.Tensor) -> torch.Tensor:
        lengths = self.cache.table.device_lengths[self.cache.table.index(slots)]
        return self.run_blocks(slots, roots[:, None], lengths[:, None], lengths)[:, 0]

    def _store(
        self, slots: tuple[int, ...], first: torch.Tensor, features: torch.Tensor, real: torch.Tensor
    ) -> torch.Tensor:
        """Stores committed tokens from position ``first [batch]`` on; ``real [batch, n]`` is False on padding.

        ``features [batch, n, feature_size]`` are the model's. Returns ``c [batch, n, hidden_size]``.
        """
        self.cache.map_slots(KvRange(slots, 0, 1), real, first)  # they are written, and nothing is read
        contexts = self._layers.contexts(features)
        positions = first[:, None] + torch.arange(real.shape[1], device=first.device)
        self._layers.store(contexts, positions, self._layer_caches)
        return contexts
