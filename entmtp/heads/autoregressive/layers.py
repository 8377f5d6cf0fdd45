"""Interface of the layers that autoregressive heads draft with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from entmtp.models.cache import KvRange, LayerShape, TreeLayer
from entmtp.models.masks import AttentionWindow


class DraftLayers(Protocol):
    """Layers that guess the token after each token from that token and a state of its predecessor.

    Layer 0 receives :meth:`inputs` of the model's decoder state, every other layer the previous layer's state. At
    depths beyond the last layer, that layer receives its own state of the parent.
    """

    @property
    def count(self) -> int:
        """Number of layers."""

    @property
    def hidden_size(self) -> int:
        """Width of the layers' states."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the layers' states."""

    @property
    def shapes(self) -> Sequence[LayerShape]:
        """Shapes of all cached keys and values of a token. One layer may have several."""

    def cache_of(self, layers: Sequence[TreeLayer]) -> Any:
        """Wrap a cache's ``layers`` of :attr:`shapes` as :meth:`run` receives them."""

    def inputs(self, features: torch.Tensor) -> torch.Tensor:
        """Layer 0's inputs ``[..., hidden_size]`` from the model's features ``[..., width]``."""

    def run(
        self,
        layer: int,
        tokens: torch.Tensor,
        inputs: torch.Tensor,
        window: AttentionWindow,
        kv_range: KvRange,
        cache: Any,
    ) -> torch.Tensor:
        """Runs a layer on ``tokens [batch, n]``; returns its states ``[batch, n, hidden_size]``.

        ``inputs [batch, n, hidden_size]`` are what it receives of each token's predecessor. ``cache`` is of
        :meth:`cache_of`; new keys and values are stored in the rows of its slot mapping.
        """
