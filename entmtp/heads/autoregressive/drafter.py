"""Draft cache of autoregressive heads and their drafter.

The cache row of the token at position p has the layers' keys and values of it. The same row of the state buffers has
what each layer needs of it for token p + 1. For layer 0 it is made from the model's decoder state, for any other it is
the previous layer's state. So drafting can continue after any token of any slot.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from entmtp.heads.autoregressive.expansion import AutoregressiveExpansion, GuessedLevel, Roots, draft_trees
from entmtp.heads.autoregressive.interface import GuessingHeads
from entmtp.heads.autoregressive.layers import DraftLayers
from entmtp.heads.interface import AcceptedPaths, Drafter, Proposal
from entmtp.models.backbone import PREFILL_CHUNK
from entmtp.models.cache import KvRange, TreeCache
from entmtp.models.masks import AttentionWindow
from entmtp.trees.batch import TreeBatch


class AutoregressiveDrafter(Drafter):
    """Drafter that starts from the layers' states of each slot's root.

    Attributes:
        states: ``[slots, layers, hidden_size]`` these states.
    """

    def __init__(self, heads: GuessingHeads, layers: DraftLayers, cache: TreeCache) -> None:
        self.heads, self.layers, self.cache = heads, layers, cache
        self._layer_cache = layers.cache_of(cache.tree_layers[-len(layers.shapes) :])
        shape = len(cache.lengths), layers.count, layers.hidden_size
        self.states = torch.zeros(shape, dtype=layers.dtype, device=cache.table.device)

    def prefill(self, slot: int, features: torch.Tensor, tokens: Sequence[int]) -> None:
        self.prefill_states(slot, features, tokens)

    def prefill_states(self, slot: int, features: torch.Tensor, tokens: Sequence[int]) -> list[torch.Tensor]:
        """Prefills as :meth:`prefill` does.

        Returns the layers' states ``[n, layers, hidden_size]`` in chunks. A text's token 0 has none.
        """
        end = self.cache.lengths[slot]
        begin = end - len(tokens)
        self.cache.state_buffers[0][slot, 0, begin + 1 : end + 1] = self.layers.inputs(features)
        chunks = []
        for first in range(max(begin, 1), end, PREFILL_CHUNK):  # token 0 has no predecessor, so it has no entry
            chunk = list(tokens[first - begin : first - begin + PREFILL_CHUNK])
            ids = torch.tensor([chunk], device=features.device)
            kv_range = KvRange((slot,), 0, first + len(chunk) + 1)
            start = torch.tensor([first], device=features.device)
            chunks.append(self._extend(kv_range, start, ids, torch.ones_like(ids, dtype=torch.bool))[0])
        return chunks

    def start(self, slot: int, root: torch.Tensor) -> None:
        length = self.cache.lengths[slot]
        start = torch.tensor([length], device=root.device)
        ids = root.reshape(1, 1)
        states = self._extend(KvRange((slot,), 0, length + 2), start, ids, torch.ones_like(ids, dtype=torch.bool))
        self.states[slot] = states[0, 0]

    def append(self, slots: tuple[int, ...], accepted: AcceptedPaths) -> None:
        index, counts = self.cache.table.index(slots), accepted.counts
        width = accepted.nodes.shape[1]
        first = self.cache.table.device_lengths[index] - counts + 1
        at = torch.arange(width, device=counts.device)
        real = at < counts[:, None]
        inputs = self.layers.inputs(accepted.path_features)
        self.cache.state_buffers[0][index[:, None], 0, (first[:, None] + at) * real] = inputs
        kv_range = self.cache.kv_range(slots, width + 1, padded=True)
        states = self._extend(kv_range, first, accepted.next_tokens, real)
        self.states[index] = states[torch.arange(len(slots), device=index.device), counts - 1]

    def draft(self, slots: tuple[int, ...], roots: torch.Tensor, trees: TreeBatch) -> Proposal:
        drafting = [row for row, topology in enumerate(trees.topologies) if topology.nodes]
        expansion = self.expand(tuple(slots[row] for row in drafting), roots[drafting])
        return draft_trees(expansion, drafting, roots, trees)

    def expand(self, slots: tuple[int, ...], roots: torch.Tensor) -> AutoregressiveExpansion:
        index = self.cache.table.index(slots)
        lengths = self.cache.table.device_lengths[index]
        return AutoregressiveExpansion(self, Roots(slots, lengths + 1, lengths + 1, lengths), self.states[index])

    def top_k(self, states: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Top-k tokens ``[..., count]`` of layers' states ``[..., hidden_size]`` and their log-probabilities."""
        return self.heads.top_k(states, count)

    @property
    def num_heads(self) -> int:
        return self.heads.num_heads

    @property
    def num_layers(self) -> int:
        return self.layers.count

    def _extend(self, kv_range: KvRange, first: torch.Tensor, tokens: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Runs the layers on committed ``tokens [batch, n]`` at positions ``first [batch]``, ``first + 1``, ...

        What layer 0 receives must be in the state buffers. Returns the layers' states, ``[batch, n, layers,
        hidden_size]``.
        """
        window = AttentionWindow.of_chains(first, real)
        cache_rows = self.cache.map_slots(kv_range, real, first).cache_rows
        index = self.cache.table.index(kv_range.slots)[:, None]
        states: list[torch.Tensor] = []
        for layer in range(self.layers.count):
            # Position p is in cache row p + 1, so row p has the predecessor's state.
            inputs = self.cache.state_buffers[layer][index, 0, window.positions]
            states.append(self.layers.run(layer, tokens, inputs, window, kv_range, self._layer_cache))
            if layer + 1 < self.layers.count:
                self.cache.state_buffers[layer + 1][index, 0, cache_rows] = states[-1]
        return torch.stack(states, dim=2)

    def run_last_layer(
        self,
        slots: tuple[int, ...],
        tokens: torch.Tensor,
        states: torch.Tensor,
        window: AttentionWindow,
        start: torch.Tensor,
    ) -> torch.Tensor:
        """The last layer's states ``[batch, n, hidden_size]`` of ``tokens [batch, n]`` deeper than the layers.

        ``states [batch, n, hidden_size]`` are its own of the tokens' parents. Keys and values go to the cache rows
        after row ``start [batch]``.
        """
        kv_range = self._map_rows(slots, window, start)
        return self.layers.run(self.layers.count - 1, tokens, states, window, kv_range, self._layer_cache)

    def guess_level(self, level: GuessedLevel, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        window = level.window()
        where = window, self._map_rows(level.roots.slots, window, level.start), self._layer_cache
        last = self.layers.count - 1
        # Layer k guesses at level k alone, the last layer at all deeper levels too. Layers from this level on are
        # run, since they need entries of this level's tokens.
        first = min(level.depth, last)
        inputs = level.states[:, :, first - 1 if level.depth <= last else last]
        states, tokens, log_probs = self.heads.guess(first, level.tokens, inputs, *where, count)
        outputs = [torch.zeros_like(states)] * first + [states]
        for layer in range(first + 1, last + 1):
            outputs.append(self.layers.run(layer, level.tokens, level.states[:, :, layer - 1], *where))
        return torch.stack(outputs, dim=2), tokens, log_probs

    def _map_rows(self, slots: tuple[int, ...], window: AttentionWindow, start: torch.Tensor) -> KvRange:
        """Maps a level's tokens to the cache rows after ``start``; returns the range that they attend to."""
        kv_range = self.cache.kv_range(slots, window.tree_mask.shape[2] + 1, padded=True)
        self.cache.map_slots(kv_range, window.real, start)
        return kv_range
