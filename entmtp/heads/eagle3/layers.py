"""Layers of EAGLE-3 heads, run with the masks of a tree (:mod:`entmtp.heads.eagle3.heads` has the formulas).

They are :class:`entmtp.heads.autoregressive.layers.DraftLayers`: one module, which may have several decoder layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn.functional import rms_norm, silu

from entmtp.heads.eagle3.configuration import Eagle3Config
from entmtp.heads.eagle3.weights import Eagle3LayerWeights, Eagle3Weights
from entmtp.heads.rotary import Rotations, rotary_embedding, rotated, rotations_at
from entmtp.models.cache import BufferShape, KvRange, LayerShape, TreeLayer
from entmtp.models.grouped_attention import attend
from entmtp.models.masks import AttentionWindow, additive_mask

if TYPE_CHECKING:
    from entmtp.models.kernels.fused_draft import FusedDraftDecoder


class KeyValueStore(Protocol):
    """Keys and values of the decoder layers."""

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int, /) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores keys and values ``[batch, heads, n, head_dim]``; returns all that attention may read, in one order."""


class DraftKeyValues(KeyValueStore):
    """Those in a cache, each decoder layer's in one of ``layers``."""

    def __init__(self, layers: Sequence[TreeLayer]) -> None:
        self.layers = layers

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int, /) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layers[layer].update(keys, values)


class Eagle3Layers:
    """Decoder layers that receive a token's embedding and a state of its predecessor.

    Attributes:
        count: 1, since all of them run at every level.
        rotary: module that gives the angles of positions.
        shapes: keys and values of each decoder layer.
    """

    count = 1

    def __init__(
        self,
        config: Eagle3Config,
        weights: Eagle3Weights,
        linear: Callable[[str, torch.Tensor], torch.Tensor],
        embed: Callable[[torch.Tensor], torch.Tensor],
        fused: Callable[[], FusedDraftDecoder | None],
        device: torch.device,
    ) -> None:
        """Runs ``weights`` by ``linear(name, states)`` and ``embed(tokens)``, which know the model's kernels.

        Where ``fused()`` gives a decoder, it runs them instead.
        """
        self.hidden_size, self.dtype = config.draft_hidden_size, weights.fc.dtype
        self._config, self._weights = config, weights
        self._linear, self._embed, self._fused = linear, embed, fused
        keys = BufferShape(config.num_key_value_heads, config.head_dim, self.dtype)
        self.shapes: tuple[LayerShape, ...] = ((keys, keys),) * config.num_layers
        self.rotary = rotary_embedding(config).to(device)

    def cache_of(self, layers: Sequence[TreeLayer]) -> DraftKeyValues:
        return DraftKeyValues(layers)

    def inputs(self, features: torch.Tensor) -> torch.Tensor:
        """``fc`` of the model's states side by side, after their norm if they have one."""
        if (decoder := self._fused()) is not None:
            return decoder.projection.forward(features)
        config, norm = self._config, self._weights.features_norm
        if norm is not None:
            groups = config.num_features if config.fc_norm else 1
            width = features.shape[-1] // groups
            normed = rms_norm(features.unflatten(-1, (groups, width)), (width,), eps=config.rms_norm_eps)
            features = normed.flatten(-2) * norm
        return self._linear("fc", features)

    def run(
        self,
        layer: int,
        tokens: torch.Tensor,
        inputs: torch.Tensor,
        window: AttentionWindow,
        kv_range: KvRange,
        cache: DraftKeyValues,
    ) -> torch.Tensor:
        """Runs all decoder layers; arguments as :meth:`DraftLayers.run`."""
        if (decoder := self._fused()) is not None:
            return decoder.forward(tokens, inputs, window, cache.layers[0])
        visible = window.visible(kv_range, first_row=2)  # token 0 has no predecessor
        return self.forward(tokens, inputs, window.positions, visible, cache)

    def forward(
        self,
        tokens: torch.Tensor,
        inputs: torch.Tensor,
        positions: torch.Tensor,
        visible: torch.Tensor,
        cache: KeyValueStore,
    ) -> torch.Tensor:
        """States ``[batch, n, hidden_size]`` of ``tokens [batch, n]`` at ``positions [batch, n]``.

        ``inputs [batch, n, hidden_size]`` are those of each token's predecessor. ``visible [batch, n, rows]`` says
        which of the keys that ``cache`` returns a token attends to.
        """
        mask = additive_mask(visible, inputs.dtype)
        rotations = rotations_at(self.rotary, inputs, positions)
        embedded, states = self._embed(tokens).to(inputs.dtype), inputs
        for number in range(self._config.num_layers):
            weights = self._weights.layer(number)
            residual, read = self._before_attention(weights, embedded, states)
            attended = self._attention(number, weights, read, mask, rotations, cache)
            states = residual + self._linear(f"{number} attention output", attended)
            gate, up = self._linear(f"{number} gate up", self.norm(states, weights.mlp_norm)).chunk(2, dim=-1)
            states = states + self._linear(f"{number} down", silu(gate) * up)
        return self.norm(states, self._weights.norm) if self._config.norm_output else states

    def norm(self, states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Root-mean-square normalisation over the last dimension, in the weights' type where training mixes types."""
        return rms_norm(states.to(weight.dtype), weight.shape, weight, self._config.rms_norm_eps)

    def _before_attention(
        self, weights: Eagle3LayerWeights, embedded: torch.Tensor, states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The state that a layer's output is added to, and what its attention receives."""
        if weights.hidden_norm is None:
            return states, self.norm(states, weights.input_norm)
        normed = self.norm(states, weights.hidden_norm)
        read = torch.cat([self.norm(embedded, weights.input_norm), normed], dim=-1)
        return normed if self._config.norm_before_residual else states, read

    def _attention(
        self,
        number: int,
        weights: Eagle3LayerWeights,
        states: torch.Tensor,
        mask: torch.Tensor,
        rotations: Rotations,
        cache: KeyValueStore,
    ) -> torch.Tensor:
        """A layer's attention ``[batch, n, heads * head_dim]``, before its output projection."""
        config = self._config
        counts = config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads
        projected = self._linear(f"{number} qkv", states).unflatten(-1, (-1, config.head_dim)).transpose(1, 2)
        queries, keys, values = projected.split(counts, dim=1)
        if weights.query_norm is not None and weights.key_norm is not None:
            queries, keys = self.norm(queries, weights.query_norm), self.norm(keys, weights.key_norm)
        keys, values = cache.update(rotated(keys, rotations), values, number)
        return attend(rotated(queries, rotations), keys, values, mask).flatten(-2)
