"""The frozen causal LM: prefill a prompt, verify a tree, turn hidden states into logits.

The tree is a mask with position ids, and the cache is a :class:`~entmtp.models.cache.TreeCache`. How the layers run is
a subclass's: by transformers' code (:mod:`entmtp.models.transformers_backbone`), or by the fused kernels alone
(:mod:`entmtp.models.fused_backbone`). :func:`~entmtp.models.build.build_backbone` makes a backbone that has passed a
self-test.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from entmtp.errors import EntMTPError
from entmtp.models.cache import NO_DRAFT_CACHE, DraftCacheLayout, KvRange, LayerShape, TreeCache, move_rows
from entmtp.models.fingerprint import model_fingerprint
from entmtp.models.kernels import fused_moves
from entmtp.models.kernels.block_weight import Weight, weight_of
from entmtp.models.kernels.choices import CHOICES
from entmtp.models.kernels.packed_linear import MakeLayer
from entmtp.models.loading.load import positions_of
from entmtp.models.masks import AttentionWindow
from entmtp.models.multi_gpu import devices_of
from entmtp.models.states import States
from entmtp.settings import Kernels
from entmtp.trees.batch import TreeBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from entmtp.models.bare_model import BareModel

PREFILL_CHUNK = 512
"""Committed tokens that the model, and heads with a draft cache, run in one pass."""
LOGITS_CHUNK = 32
"""Positions whose logits are in memory at a time, where only a few numbers of each are needed."""


class Backbone(ABC):
    """A causal LM that verifies trees.

    Attributes:
        kernels: the kernel choice in use, never 'auto'. ``kernels_description`` describes it for a user.
        device: the device of trees, heads and all results.
        devices: the devices of the model's layers, :attr:`device` first.
        cache_shapes: shapes of the keys and values of each layer.
    """

    cache_shapes: list[LayerShape]

    def __init__(self, model: PreTrainedModel | BareModel, config: Any, kernels: Kernels) -> None:
        """Take sizes from ``config``, a text model's, and the fingerprint from the ``model`` as it was loaded."""
        self.fingerprint = model_fingerprint(model)
        self.config = config
        self.devices = devices_of(model)
        self.device = self.devices[0]
        self.dtype = next(each.dtype for each in model.parameters() if each.is_floating_point())
        self.hidden_size: int = config.hidden_size
        self.vocab_size: int = config.vocab_size
        self.max_context: int = positions_of(config)
        # Whether the model applies the sliding window of its configuration; the self-test finds out.
        self.applies_sliding_window = True
        self.kernels = kernels
        self.kernels_description = ""

    @property
    @abstractmethod
    def input_layer(self) -> torch.nn.Module:
        """The embedding table's layer."""

    @property
    @abstractmethod
    def output_layer(self) -> torch.nn.Module:
        """The output layer, which has the weight ``[vocab_size, hidden_size]``."""

    @property
    @abstractmethod
    def eos_token_ids(self) -> frozenset[int]:
        """Token ids that end a generation, from the model's generation config."""

    @property
    @abstractmethod
    def model(self) -> Any:
        """transformers' model; a backbone that runs without one builds it when it is first read."""

    @property
    def make_layer(self) -> MakeLayer | None:
        """Factory of the linear layers in use; None where they are PyTorch's own."""
        return CHOICES[self.kernels].make_layer

    @property
    def is_multi_device(self) -> bool:
        """Whether the model's layers are on several devices."""
        return len(self.devices) > 1

    def check_feature_layers(self, layers: Sequence[int]) -> None:
        """Raise EntMTPError unless the states that enter these ``layers`` can be handed out."""
        count: int = self.config.num_hidden_layers
        if outside := [layer for layer in layers if not 0 <= layer < count]:
            raise EntMTPError(
                f"feature_layers: {outside[0]} is not one of the model's {count} layers;"
                f" use numbers from 0 to {count - 1}"
            )

    @abstractmethod
    def release(self) -> None:
        """Give back memory whose contents can be read again, such as pages of a mapped file."""

    @property
    def embeddings(self) -> Weight:
        """Input embedding table ``[vocab_size, hidden_size]``."""
        return weight_of(self.input_layer)

    def new_cache(self, slots: int, capacity: int, draft: DraftCacheLayout = NO_DRAFT_CACHE) -> TreeCache:
        """Make a cache for ``slots`` requests of up to ``capacity`` rows, with the ``draft`` cache of the heads."""
        layers = [*self.cache_shapes, *draft.layers]
        rows = capacity + draft.spare_rows
        if CHOICES[self.kernels].is_triton:
            from entmtp.models.kernels.triton.ancestor_bits import MAX_NODES
            from entmtp.models.kernels.triton.move_rows import move_rows as triton_move_rows

            return TreeCache(
                layers, slots, rows, self.device, draft.state_buffers, triton_move_rows, any_length_width=MAX_NODES
            )
        move = fused_moves.move_rows if CHOICES[self.kernels].fuses else move_rows
        return TreeCache(layers, slots, rows, self.device, draft.state_buffers, move)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits ``[..., vocab_size]`` of decoder states ``[..., hidden_size]``, scaled as the model does."""
        logits = self._output_logits(hidden.reshape(1, -1, hidden.shape[-1]))
        return logits.reshape(*hidden.shape[:-1], -1).to(self.device)

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int], slot: int, cache: TreeCache, feature_layers: Sequence[int] = ()) -> States:
        """Append ``ids`` to ``slot`` and return their states ``[len(ids), ...]``.

        The features are the states that enter ``feature_layers``, or the decoder states where none are named.
        """
        chunks = []
        for begin in range(0, len(ids), PREFILL_CHUNK):
            chunk = list(ids[begin : begin + PREFILL_CHUNK])
            free = max(0, cache.capacity - cache.lengths[slot] - len(chunk))
            padding = min(-len(chunk) % self._prefill_multiple, free)
            tokens = torch.tensor([chunk + [0] * padding], device=self.device)
            real = torch.arange(len(chunk) + padding, device=self.device)[None] < len(chunk)
            kv_range = cache.kv_range([slot], tokens.shape[1], padded=padding > 0)
            chunks.append(self._chain(tokens, real, kv_range, cache, feature_layers).at(0, len(chunk)))
            cache.append([slot], [len(chunk)])
        return States.joined(chunks)

    def read(self, tokens: Sequence[int], feature_layers: Sequence[int] = ()) -> States:
        """States of a whole text ``[len(tokens), ...]``, in a cache of its own."""
        cache = self.new_cache(slots=1, capacity=len(tokens) + self._prefill_multiple)
        return self.prefill(tokens, 0, cache, feature_layers)

    @property
    def _prefill_multiple(self) -> int:
        """Prompts are padded to a multiple of it."""
        return 1

    @torch.inference_mode()
    def extend(self, tokens: torch.Tensor, slots: Sequence[int], cache: TreeCache) -> torch.Tensor:
        """Decoder states ``[batch, n, hidden_size]`` of chains ``tokens [batch, n]`` after the slots' tokens.

        The caller appends the tokens that it commits.
        """
        kv_range = cache.kv_range(slots, tokens.shape[1], padded=False)
        return self._chain(tokens, torch.ones_like(tokens, dtype=torch.bool), kv_range, cache, ()).hidden

    def _chain(
        self,
        tokens: torch.Tensor,
        real: torch.Tensor,
        kv_range: KvRange,
        cache: TreeCache,
        feature_layers: Sequence[int],
    ) -> States:
        batch, width = tokens.shape
        depth = torch.arange(width, device=self.device).expand(batch, width)
        ancestors = torch.ones(width, width, dtype=torch.bool, device=self.device).tril().expand(batch, width, width)
        window = self._window(depth, ancestors & real[:, :, None] & real[:, None, :], real, kv_range, cache)
        return self._forward(tokens, window, kv_range, cache, feature_layers)

    @torch.inference_mode()
    def verify(
        self,
        tokens: torch.Tensor,
        trees: TreeBatch,
        kv_range: KvRange,
        cache: TreeCache,
        feature_layers: Sequence[int] = (),
    ) -> tuple[torch.Tensor, States]:
        """Logits ``[batch, width, vocab_size]`` and states ``[batch, width, ...]`` of all nodes.

        ``tokens [batch, width]`` holds the root first; ``kv_range`` is :meth:`TreeCache.kv_range` of the trees. The
        features are as of :meth:`prefill`. The caller commits the accepted path. Apart from ``trees.shape`` and
        ``kv_range``, the host provides nothing.
        """
        window = self._window(trees.depth, trees.ancestors, trees.real, kv_range, cache)
        return self._verify(tokens, window, kv_range, cache, feature_layers)

    def _window(
        self,
        depth: torch.Tensor,
        ancestors: torch.Tensor,
        real: torch.Tensor,
        kv_range: KvRange,
        cache: TreeCache,
    ) -> AttentionWindow:
        """Map the nodes of a pass to cache rows; returns the rows that they attend to."""
        start = cache.map_slots(kv_range, real).start
        # Learned position tables end at the context. Tokens past it are cut later, and padding is never read.
        positions = (start[:, None] + depth).clamp(max=self.max_context - 1)
        return AttentionWindow(start[:, None], start, ancestors, positions, positions, real)

    @abstractmethod
    def _forward(
        self,
        tokens: torch.Tensor,
        window: AttentionWindow,
        kv_range: KvRange,
        cache: TreeCache,
        feature_layers: Sequence[int],
    ) -> States:
        """States ``[batch, n, ...]`` of ``tokens [batch, n]``, which see the rows of ``window``."""

    @abstractmethod
    def _output_logits(self, states: torch.Tensor) -> torch.Tensor:
        """Logits ``[1, n, vocab_size]`` of decoder states ``[1, n, hidden_size]``."""

    def _verify(
        self,
        tokens: torch.Tensor,
        window: AttentionWindow,
        kv_range: KvRange,
        cache: TreeCache,
        feature_layers: Sequence[int],
    ) -> tuple[torch.Tensor, States]:
        """Logits ``[batch, n, vocab_size]`` and states; arguments as :meth:`_forward`."""
        states = self._forward(tokens, window, kv_range, cache, feature_layers)
        return self.logits(states.hidden), states
