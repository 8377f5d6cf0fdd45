"""DFlash heads (arXiv 2602.06036), which guess all depths in one pass, and DSpark's (arXiv 2607.05147).

For a token at position p of the text, with ``f_p`` the states of position p that enter some decoder layers of the
model, side by side: ``c_p = RMS_context(fc(f_p))``. It makes the token's keys and values in each layer of the heads,
without another norm. A block is the root, which the model has not read yet, and mask tokens after it:

    ``x = [embedding of the root, embedding of the mask token, ...]``
    ``q = Wq RMS_input(x)``; ``k, v = Wk, Wv`` of ``c_0 ... c_(root - 1)``, then of ``RMS_input(x)``
    ``x = x + o_proj(attention(q, k, v))``: every token of the block attends to the text and to the whole block
    ``x = x + down(silu(gate n) * up n)`` with ``n = RMS_post(x)``, and so on for each layer
    ``h = RMS(x)``, ``logits = output(h)``

Queries and keys have a norm over each head before they are turned by their positions, as in a Qwen3. The state of the
i-th mask token guesses the i-th token after the root. In DeepSpec's heads and most of DSpark's the state of the token
before it does, beginning with the root's own. A depth's guesses are the same under every parent.

DSpark adds a bias by the previous token, ``logits = output(h) + markov_output(markov_tokens[previous])``, so that
guesses differ between parents. Its estimate of the chance that a guess drawn from these logits is accepted, given that
those before it are, is ``sigmoid(confidence([h, markov_tokens[previous]]))``, or that of ``h`` alone. The calibration
of chances may read its log-odds (:mod:`entmtp.trees.probability_calibration`).

Sources: ``dflash/model.py`` in github.com/z-lab/dflash, ``deepspec/modeling/dspark`` in
github.com/deepseek-ai/DeepSpec, ``src/speculators/models/{dflash,dspark}`` in github.com/vllm-project/speculators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import torch

from entmtp.heads.base import DraftHeads
from entmtp.heads.dflash.configuration import DFlashConfig
from entmtp.heads.dflash.drafter import DFlashDrafter
from entmtp.heads.dflash.layers import DFlashLayers
from entmtp.heads.dflash.text import ROOTS_PER_PASS, DFlashText
from entmtp.heads.dflash.weights import DFlashWeights
from entmtp.heads.linear_weights import LinearWeights
from entmtp.heads.registry import register_heads
from entmtp.methods import DFLASH
from entmtp.models.cache import DraftCacheLayout, TreeCache
from entmtp.models.kernels.block_weight import Weight, embed

if TYPE_CHECKING:
    from entmtp.models.backbone import Backbone


@register_heads
class DFlashHeads(DraftHeads):
    """Heads whose states are ``h``, followed by ``markov_tokens[previous]`` if they have DSpark's bias."""

    config_class = DFlashConfig
    config: DFlashConfig
    kind = DFLASH
    layers: DFlashLayers

    def __init__(self, config: DFlashConfig) -> None:
        super().__init__(config)
        self.weights = DFlashWeights(config)

    @property
    def feature_layers(self) -> tuple[int, ...]:
        return tuple(self.config.feature_layers)

    @property
    def cache_layout(self) -> DraftCacheLayout:
        """The layers' keys and values of each token, and rows for a block."""
        return DraftCacheLayout(self.layers.shapes, spare_rows=self.config.block_size)

    def attach(self, backbone: Backbone) -> Self:
        attached = super().attach(backbone)
        self.layers = DFlashLayers(self.config, self.weights, self.linear, self._embed, backbone.device)
        return attached

    def drafter(self, cache: TreeCache) -> DFlashDrafter:
        return DFlashDrafter(self, cache)

    def traced_text(self, features: torch.Tensor, tokens: torch.Tensor, begin: int) -> DFlashText:
        capacity = len(tokens) + ROOTS_PER_PASS * self.config.block_size
        cache = TreeCache(self.cache_layout.layers, 1, capacity, tokens.device)
        return DFlashText(self, self.drafter(cache), features, tokens, begin)

    def linear_weights(self) -> dict[str, LinearWeights]:
        return super().linear_weights() | self.weights.linear_weights()

    def bind_output(self, layer: Any) -> None:
        if self.weights.output is None:
            super().bind_output(layer)

    @property
    def output_layers(self) -> Sequence[Weight]:
        return super().output_layers if self.weights.output is None else [self.weights.output]

    def draft_logits(self, states: torch.Tensor, head: int | None = None) -> torch.Tensor:
        if not self.config.markov_rank:
            return self.linear("output", states)
        own, previous = states.split([self.config.hidden_size, self.config.markov_rank], dim=-1)
        return self.linear("output", own) + self.linear("markov", previous)

    def token_vectors(self, tokens: torch.Tensor) -> torch.Tensor | None:
        """``markov_tokens[tokens]``, ``[..., markov_rank]``; None without DSpark's bias."""
        table = self.weights.markov_tokens
        return None if table is None else torch.nn.functional.embedding(tokens, table)

    def head_states(self, states: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        vectors = self.token_vectors(previous)
        return states if vectors is None else torch.cat([states, vectors], dim=-1)

    @property
    def estimates_acceptance(self) -> bool:
        return self.config.has_confidence

    def estimated_odds(self, states: torch.Tensor) -> torch.Tensor | None:
        weight, bias = self.weights.confidence, self.weights.confidence_bias
        if weight is None:
            return None
        read = states if self.config.confidence_reads_token else states[..., : self.config.hidden_size]
        return torch.nn.functional.linear(read, weight, bias)[..., 0].float()

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        own = self.weights.embeddings
        return embed(self.input_embeddings if own is None else own, tokens)
