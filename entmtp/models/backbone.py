"""The frozen causal LM: prefill a prompt, verify a tree, turn hidden states into logits.

Any ``transformers`` decoder-only model works unmodified. The tree is a 4D mask with position ids, and the cache is a
:class:`~entmtp.models.cache.TreeCache`. :func:`~entmtp.models.build.build_backbone` makes a backbone that has passed a
self-test.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from entmtp.models import attention
from entmtp.models.cache import NO_DRAFT_CACHE, DraftCacheLayout, KvRange, LayerShape, TreeCache, move_rows
from entmtp.models.kernels import fused_moves
from entmtp.models.kernels.block_weight import Weight, dequantize_layers, weight_of
from entmtp.models.kernels.choices import CHOICES
from entmtp.models.kernels.fused_decoder import FusedDecoder, fused_decoder
from entmtp.models.kernels.fused_linear import FusedLinear
from entmtp.models.kernels.packed_linear import MakeLayer, replace_linear_layers
from entmtp.models.known_kinds import is_known
from entmtp.models.loading.load import model_fingerprint, positions_of
from entmtp.models.masks import AttentionWindow, additive_mask
from entmtp.models.multi_gpu import devices_of, remove_dispatch_hook
from entmtp.settings import Kernels
from entmtp.trees.batch import TreeBatch

PREFILL_CHUNK = 512
PREFILL_MULTIPLE = 16

Output = Callable[[torch.Tensor], torch.Tensor]
"""Function from decoder states ``[1, n, hidden_size]`` to logits ``[1, n, vocab_size]``."""


class Backbone:
    """A causal LM that verifies trees.

    The backbone works on a copy that shares the parameters of the given model, which stays as it is.

    Attributes:
        kernels: the kernel choice in use, never 'auto'. ``kernels_description`` describes it for a user.
        device: the device of trees, heads and all results.
        devices: the devices of the model's layers, :attr:`device` first.
        cache_shapes: shapes of the keys and values of each layer, as the self-test finds them.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Use PyTorch's own kernels; :func:`~entmtp.models.build.build_backbone` finds and tests faster ones."""
        self.fingerprint = model_fingerprint(model)
        self._fused_decoder: FusedDecoder | None = None
        self.use_model(model)
        self.config: Any = self.model.config.get_text_config(decoder=True)
        self.device, self.dtype = model.device, model.dtype
        self.devices = devices_of(model)
        self.hidden_size: int = self.config.hidden_size
        self.vocab_size: int = self.config.vocab_size
        self.max_context: int = positions_of(self.config)
        # Whether the model applies the sliding window of its configuration; the self-test finds out.
        self.applies_sliding_window = True
        self.cache_shapes: list[LayerShape] = []
        self.kernels: Kernels = "eager"
        self.kernels_description = ""

    def use_model(self, model: PreTrainedModel) -> None:
        """Run on a copy of ``model`` that shares its parameters, with PyTorch's own layers."""
        self._set_model(sharing_copy(model))

    def use_kernels(self, kernels: Kernels, siblings: Sequence[Sequence[torch.nn.Linear]]) -> None:
        """Run linear layers with this kernel choice; each group of ``siblings``, which share their input, is merged."""
        self.kernels = kernels
        if self.make_layer is None:
            dequantize_layers(self.model)
            self._set_model(self.model)
        else:
            fused = None
            output_layer: Any = self.model.get_output_embeddings()
            if CHOICES[kernels].fuses and self.model.config._attn_implementation == attention.NAME:
                fused = fused_decoder(self.decoder, output_layer, self.config, CHOICES[kernels].rounds)
            # A fused decoder is separate: any caller may run the model's own with any cache.
            unchanged = None if fused is None else self.decoder
            replace_linear_layers(self.model, siblings, self.make_layer, output_layer, unchanged)
            self._set_model(self.model)  # so that logits come from the new output layer
            self._fused_decoder = fused

    def _set_model(self, model: PreTrainedModel) -> None:
        self.model = model.eval().requires_grad_(False)
        self._output = _output_of(self.model)
        self._fused_decoder = None

    @property
    def make_layer(self) -> MakeLayer | None:
        """Factory of the linear layers in use; None where they are PyTorch's own."""
        return CHOICES[self.kernels].make_layer

    @property
    def is_multi_device(self) -> bool:
        """Whether the model's layers are on several devices."""
        return len(self.devices) > 1

    @property
    def decoder(self) -> torch.nn.Module:
        """The model without its output layer."""
        return getattr(self.model, self.model.base_model_prefix)

    @property
    def embeddings(self) -> Weight:
        """Input embedding table ``[vocab_size, hidden_size]``."""
        return weight_of(self.model.get_input_embeddings())

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Token ids that end a generation, from the model's generation config."""
        config = getattr(self.model, "generation_config", None)
        eos = getattr(config, "eos_token_id", None)
        return frozenset([] if eos is None else [eos] if isinstance(eos, int) else eos)

    def new_cache(self, slots: int, capacity: int, draft: DraftCacheLayout = NO_DRAFT_CACHE) -> TreeCache:
        """Make a cache for ``slots`` requests of up to ``capacity`` rows, with the ``draft`` cache of the heads."""
        layers = [*self.cache_shapes, *draft.layers]
        move = fused_moves.move_rows if CHOICES[self.kernels].fuses else move_rows
        return TreeCache(layers, slots, capacity + draft.spare_rows, self.device, draft.state_buffers, move)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits ``[..., vocab_size]`` of decoder states ``[..., hidden_size]``, scaled as the model does."""
        logits = self._output(hidden.reshape(1, -1, hidden.shape[-1]))
        return logits.reshape(*hidden.shape[:-1], -1).to(self.device)

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int], slot: int, cache: TreeCache) -> torch.Tensor:
        """Append ``ids`` to ``slot`` and return their decoder states ``[len(ids), hidden_size]``."""
        chunks = []
        for begin in range(0, len(ids), PREFILL_CHUNK):
            chunk = list(ids[begin : begin + PREFILL_CHUNK])
            free = max(0, cache.capacity - cache.lengths[slot] - len(chunk))
            padding = min(-len(chunk) % self._prefill_multiple, free)
            tokens = torch.tensor([chunk + [0] * padding], device=self.device)
            real = torch.arange(len(chunk) + padding, device=self.device)[None] < len(chunk)
            kv_range = cache.kv_range([slot], tokens.shape[1], padded=padding > 0)
            chunks.append(self._chain(tokens, real, kv_range, cache)[0, : len(chunk)])
            cache.append([slot], [len(chunk)])
        return torch.cat(chunks)

    @property
    def _prefill_multiple(self) -> int:
        """Prompts are padded to a multiple of it, so that kernels built per shape (oneDNN's, CUDA graphs) are few."""
        return PREFILL_MULTIPLE if self._fused_decoder is None else 1

    @torch.inference_mode()
    def extend(self, tokens: torch.Tensor, slots: Sequence[int], cache: TreeCache) -> torch.Tensor:
        """Decoder states ``[batch, n, hidden_size]`` of chains ``tokens [batch, n]`` after the slots' tokens.

        The caller appends the tokens that it commits.
        """
        kv_range = cache.kv_range(slots, tokens.shape[1], padded=False)
        return self._chain(tokens, torch.ones_like(tokens, dtype=torch.bool), kv_range, cache)

    def _chain(self, tokens: torch.Tensor, real: torch.Tensor, kv_range: KvRange, cache: TreeCache) -> torch.Tensor:
        batch, width = tokens.shape
        depth = torch.arange(width, device=self.device).expand(batch, width)
        ancestors = torch.ones(width, width, dtype=torch.bool, device=self.device).tril().expand(batch, width, width)
        window = self._window(depth, ancestors & real[:, :, None] & real[:, None, :], real, kv_range, cache)
        return self._forward(tokens, window, kv_range, cache)

    @torch.inference_mode()
    def verify(
        self, tokens: torch.Tensor, trees: TreeBatch, kv_range: KvRange, cache: TreeCache
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits ``[batch, width, vocab_size]`` and decoder states ``[batch, width, hidden_size]`` of all nodes.

        ``tokens [batch, width]`` holds the root first; ``kv_range`` is :meth:`TreeCache.kv_range` of the trees. The
        caller commits the accepted path. Apart from ``trees.shape`` and ``kv_range``, the host provides nothing.
        """
        window = self._window(trees.depth, trees.ancestors, trees.real, kv_range, cache)
        if self._fused_decoder is not None and isinstance(self._output, FusedLinear):
            return self._fused_decoder.verify(tokens, window, self._shared_sliding_window(), cache, self._output)
        hidden = self._forward(tokens, window, kv_range, cache)
        return self.logits(hidden), hidden

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

    def _forward(
        self, tokens: torch.Tensor, window: AttentionWindow, kv_range: KvRange, cache: TreeCache
    ) -> torch.Tensor:
        if self._fused_decoder is not None:
            return self._fused_decoder(tokens, window, self._shared_sliding_window(), cache)
        visible = window.visible(kv_range)
        masks = {
            kind: self._additive(visible if size is None else visible & window.within_sliding_window(kv_range, size))
            for kind, size in self._sliding_windows().items()
        }
        output = self.decoder(
            input_ids=tokens,
            attention_mask=masks.get(None, masks),
            position_ids=window.positions,
            past_key_values=cache,
            use_cache=True,
        )
        return output.last_hidden_state.to(self.device)

    def _sliding_windows(self) -> dict[str | None, int | None]:
        """Size of the sliding window of each layer type, or None; the type is None where the model has no types."""
        size: int | None = getattr(self.config, "sliding_window", None)
        slides = size is not None and self.applies_sliding_window
        layer_types: set[str | None] = set(getattr(self.config, "layer_types", None) or [None])
        return {kind: size if slides and kind in (None, "sliding_attention") else None for kind in layer_types}

    def _shared_sliding_window(self) -> int | None:
        """Size of the sliding window of all layers, which are of one type where a fused decoder runs; or None."""
        (size,) = self._sliding_windows().values()
        return size

    def _additive(self, visible: torch.Tensor) -> torch.Tensor:
        return additive_mask(visible, self.dtype).repeat(1, 1, self._query_groups, 1)

    @property
    def _query_groups(self) -> int:
        """Repetitions of each mask row that the tree attention needs (:mod:`entmtp.models.attention`)."""
        if self.model.config._attn_implementation != attention.NAME:
            return 1
        heads: int = self.config.num_attention_heads
        return heads // (getattr(self.config, "num_key_value_heads", None) or heads)


class _States(BaseModelOutputWithPast):
    """Output of a decoder with its states only; other fields that a model's forward reads (router logits) are None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Passthrough(torch.nn.Module):
    """Replacement of the decoder that returns its input states."""

    @property
    def decoder(self) -> _Passthrough:
        """Itself, for models that call the decoder inside their base model."""
        return self

    def forward(self, *args: object, inputs_embeds: torch.Tensor, **kwargs: object) -> _States:
        return _States(last_hidden_state=inputs_embeds)


def sharing_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Copy the modules of a model, but share its parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _output_of(model: PreTrainedModel) -> Output:
    """The model's output: a layer, or the model's own forward without the decoder, which may scale, cap or bias."""
    if is_known(model, "ForCausalLM"):
        output: Output = model.get_output_embeddings()
        return output
    replay = copy.copy(model)
    replay._modules = dict(model._modules)
    replay._modules[model.base_model_prefix] = _Passthrough()
    remove_dispatch_hook(replay)
    return lambda states: replay(inputs_embeds=states, use_cache=False).logits


__all__ = ["Backbone", "attention"]
