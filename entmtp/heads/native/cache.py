"""Draft cache of native heads, and guessing from it (:mod:`entmtp.heads.native.heads` has the formulas).

In the rows of the token at position p lie layer k's key and value of it, and as notes the state ``h_{k-1}[p]``, which
layer k needs for token p + 1. So any slot can go on from any of its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.cache_utils import Cache

from entmtp.heads.base import DraftHeads
from entmtp.heads.interface import PREFILL_CHUNK, AcceptedPaths, Drafter, Proposal
from entmtp.heads.native.drafting import NativeExpansion, fill
from entmtp.heads.native.layers import NativeLayers
from entmtp.models.cache import KvRange, TreeCache
from entmtp.models.masks import AttentionWindow
from entmtp.trees.batch import TreeBatch


class NativeDrafter(Drafter):
    """Drafts for the slots of a cache.

    Attributes:
        states: ``[slots, layers, hidden_size]`` what each layer made of the slot's root: where guessing starts.
    """

    def __init__(self, heads: DraftHeads, layers: NativeLayers, cache: TreeCache) -> None:
        self.heads, self.layers, self.cache = heads, layers, cache
        self._rows = Cache(layers=list(cache.tree_layers[-layers.count :]))
        shape = len(cache.lengths), layers.count, layers.hidden_size
        self.states = torch.zeros(shape, dtype=layers.dtype, device=cache.table.device)

    def prefill(self, slot: int, hidden: torch.Tensor, tokens: Sequence[int]) -> None:
        for _ in self.prefill_states(slot, hidden, tokens):
            pass

    def prefill_states(self, slot: int, hidden: torch.Tensor, tokens: Sequence[int]) -> list[torch.Tensor]:
        """As :meth:`prefill`; the layers' states ``[n, layers, hidden_size]``, in parts, from token 1 of a text on."""
        end = self.cache.lengths[slot]
        begin = end - len(tokens)
        self.cache.state_buffers[0][slot, 0, begin + 1 : end + 1] = hidden
        parts = []
        for first in range(max(begin, 1), end, PREFILL_CHUNK):  # nothing comes before token 0, so that it has no entry
            part = list(tokens[first - begin : first - begin + PREFILL_CHUNK])
            ids = torch.tensor([part], device=hidden.device)
            kv_range = KvRange((slot,), 0, first + len(part) + 1)
            start = torch.tensor([first], device=hidden.device)
            parts.append(self._follow(kv_range, start, ids, torch.ones_like(ids, dtype=torch.bool))[0])
        return parts

    def start(self, slot: int, root: torch.Tensor) -> None:
        length = self.cache.lengths[slot]
        start = torch.tensor([length], device=root.device)
        ids = root.reshape(1, 1)
        made = self._follow(KvRange((slot,), 0, length + 2), start, ids, torch.ones_like(ids, dtype=torch.bool))
        self.states[slot] = made[0, 0]

    def append(self, slots: tuple[int, ...], accepted: AcceptedPaths) -> None:
        index, counts = self.cache.table.index(slots), accepted.counts
        width = accepted.nodes.shape[1]
        first = self.cache.table.device_lengths[index] - counts + 1
        at = torch.arange(width, device=counts.device)
        real = at < counts[:, None]
        self.cache.state_buffers[0][index[:, None], 0, (first[:, None] + at) * real] = accepted.path_hidden
        kv_range = self.cache.kv_range(slots, width + 1, padded=True)
        made = self._follow(kv_range, first, accepted.next_tokens, real)
        self.states[index] = made[torch.arange(len(slots), device=index.device), counts - 1]

    def draft(self, slots: tuple[int, ...], roots: torch.Tensor, trees: TreeBatch) -> Proposal:
        drafting = [row for row, topology in enumerate(trees.topologies) if topology.nodes]
        expansion = self.expand(tuple(slots[row] for row in drafting), roots[drafting])
        return fill(expansion, drafting, roots, trees)

    def expand(self, slots: tuple[int, ...], roots: torch.Tensor) -> NativeExpansion:
        index = self.cache.table.index(slots)
        lengths = self.cache.table.device_lengths[index]
        return NativeExpansion(self, slots, self.states[index], seen=lengths + 1, begin=lengths + 1, position=lengths)

    def top_k(self, states: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The likeliest tokens ``[..., count]`` of layers' states ``[..., hidden_size]``, with log-probabilities."""
        return self.heads.top_k(states, count)

    @property
    def num_heads(self) -> int:
        return self.heads.num_heads

    @property
    def num_layers(self) -> int:
        return self.layers.count

    def _follow(self, kv_range: KvRange, first: torch.Tensor, tokens: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Makes the entries of certain ``tokens [batch, n]`` at positions ``first [batch]``, ``first + 1``, ...

        The states before layer 0 are noted already. Returns the layers' states ``[batch, n, layers, hidden_size]``.
        """
        window = AttentionWindow.of_chains(first, real)
        rows = self.cache.map_slots(kv_range, real, first).cache_rows
        index = self.cache.table.index(kv_range.slots)[:, None]
        made = []
        for layer in range(self.layers.count):
            # The state of the previous token, in the row before the token's own.
            before = self.cache.state_buffers[layer][index, 0, window.positions]
            made.append(self.layers.run(layer, tokens, before, window, kv_range, self._rows))
            if layer + 1 < self.layers.count:
                self.cache.state_buffers[layer + 1][index, 0, rows] = made[-1]
        return torch.stack(made, dim=2)

    def run_level(
        self,
        level: int,
        slots: tuple[int, ...],
        tokens: torch.Tensor,
        states: torch.Tensor,
        window: AttentionWindow,
        start: torch.Tensor,
    ) -> torch.Tensor:
        """The layers' states ``[batch, n, layers, hidden_size]`` of guessed ``tokens [batch, n]`` at depth ``level``.

        ``states`` are those of their parents. Their rows begin behind row ``start [batch]``.
        """
        kv_range = self.cache.kv_range(slots, window.tree_mask.shape[2] + 1, padded=True)
        self.cache.map_slots(kv_range, window.real, start)
        made = torch.zeros_like(states)
        last = self.layers.count - 1
        # Below its own level a layer guesses nothing more, above it it lacks the states to start from.
        for layer in range(min(level, last), last + 1):
            before = states[:, :, layer - 1 if level <= last else last]
            made[:, :, layer] = self.layers.run(layer, tokens, before, window, kv_range, self._rows)
        return made
