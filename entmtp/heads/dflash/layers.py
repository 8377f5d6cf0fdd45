"""Decoder layers of DFlash heads: they attend to the text's keys and values and, both ways, to the block itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import rms_norm, silu

from entmtp.heads.dflash.configuration import DFlashConfig
from entmtp.heads.dflash.weights import DFlashLayerWeights, DFlashWeights
from entmtp.heads.rotary import Rotations, rotary_embedding, rotated, rotations_at
from entmtp.models.cache import BufferShape, LayerShape, TreeLayer
from entmtp.models.grouped_attention import attend
from entmtp.models.masks import additive_mask


class DFlashLayers:
    """Decoder layers in the draft cache, by the formulas of :mod:`entmtp.heads.dflash.heads`.

    Attributes:
        rotary: module that gives the angles of positions.
        shapes: keys and values of each decoder layer.
    """

    def __init__(
        self,
        config: DFlashConfig,
        weights: DFlashWeights,
        linear: Callable[[str, torch.Tensor], torch.Tensor],
        embed: Callable[[torch.Tensor], torch.Tensor],
        device: torch.device,
    ) -> None:
        """Runs ``weights`` by ``linear(name, states)`` and ``embed(tokens)``, which know the model's kernels."""
        self.dtype = weights.fc.dtype
        self._config, self._weights = config, weights
        self._linear, self._embed = linear, embed
        keys = BufferShape(config.num_key_value_heads, config.head_dim, self.dtype)
        self.shapes: tuple[LayerShape, ...] = ((keys, keys),) * config.num_layers
        self.rotary = rotary_embedding(config).to(device)

    def contexts(self, features: torch.Tensor) -> torch.Tensor:
        """``c [..., hidden_size]`` of tokens, from the model's states ``[..., feature_size]`` of them."""
        return self._norm(self._linear("fc", features), self._weights.context_norm)

    def store(self, contexts: torch.Tensor, positions: torch.Tensor, cache: Sequence[TreeLayer]) -> None:
        """Stores the keys and values of tokens ``c [batch, n, hidden_size]`` at ``positions [batch, n]``.

        They are written to the cache rows that are mapped.
        """
        rotations = rotations_at(self.rotary, contexts, positions)
        for number, layer_cache in enumerate(cache):
            layer_cache.update(*self._keys_values(number, contexts, rotations))

    def forward(
        self, tokens: torch.Tensor, positions: torch.Tensor, visible: torch.Tensor, cache: Sequence[TreeLayer]
    ) -> torch.Tensor:
        """States ``h [batch, n, hidden_size]`` of ``tokens [batch, n]`` of blocks, at ``positions [batch, n]``.

        The blocks' keys and values go to the cache rows that are mapped. ``visible [batch, n, rows]`` says which of the
        rows that are read each token attends to.
        """
        mask = additive_mask(visible, self.dtype)
        states = self._embed(tokens).to(self.dtype)
        rotations = rotations_at(self.rotary, states, positions)
        for number, layer_cache in enumerate(cache):
            weights = self._weights.layer(number)
            read = self._norm(states, weights.input_norm)
            queries = self._norm(self._heads(f"{number} queries", read), weights.query_norm)
            keys, values = layer_cache.update(*self._keys_values(number, read, rotations))
            attended = attend(rotated(queries, rotations), keys, values, mask).flatten(-2)
            states = states + self._linear(f"{number} attention output", attended)
            states = states + self._mlp(number, weights, states)
        return self._norm(states, self._weights.norm)

    def _keys_values(
        self, number: int, states: torch.Tensor, rotations: Rotations
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's keys and values ``[batch, kv_heads, n, head_dim]`` of ``states [batch, n, hidden_size]``."""
        keys, values = self._heads(f"{number} keys values", states).chunk(2, dim=1)
        return rotated(self._norm(keys, self._weights.layer(number).key_norm), rotations), values

    def _heads(self, name: str, states: torch.Tensor) -> torch.Tensor:
        return self._linear(name, states).unflatten(-1, (-1, self._config.head_dim)).transpose(1, 2)

    def _mlp(self, number: int, weights: DFlashLayerWeights, states: torch.Tensor) -> torch.Tensor:
        gate, up = self._linear(f"{number} gate up", self._norm(states, weights.mlp_norm)).chunk(2, dim=-1)
        return self._linear(f"{number} down", silu(gate) * up)

    def _norm(self, states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Root-mean-square normalisation over the last dimension."""
        return rms_norm(states, weight.shape, weight, self._config.rms_norm_eps)
