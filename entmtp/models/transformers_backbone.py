"""A backbone whose layers run by transformers' code, with this package's attention and linear layers where they fit.

Any ``transformers`` decoder-only model works unmodified. A decoder of a known kind runs in the fused kernels on a CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from entmtp.errors import EntMTPError
from entmtp.models import attention
from entmtp.models.backbone import Backbone
from entmtp.models.cache import KvRange, TreeCache
from entmtp.models.features import FeatureBuffer, decoder_layers
from entmtp.models.kernels.block_weight import dequantize_layers
from entmtp.models.kernels.choices import CHOICES
from entmtp.models.kernels.fused_decoder import FusedDecoder, fused_decoder
from entmtp.models.kernels.fused_linear import FusedLinear
from entmtp.models.kernels.merged_projections import merge_in_place
from entmtp.models.kernels.packed_linear import replace_linear_layers
from entmtp.models.known_kinds import is_known
from entmtp.models.masks import AttentionWindow, additive_mask
from entmtp.models.multi_gpu import remove_dispatch_hook
from entmtp.models.states import States
from entmtp.models.transformers_cache import transformers_cache
from entmtp.models.transformers_model import sharing_copy
from entmtp.settings import Kernels

if TYPE_CHECKING:
    from entmtp.models.kernels.triton.decoder import TritonDecoder

PREFILL_MULTIPLE = 16

Output = Callable[[torch.Tensor], torch.Tensor]
"""Function from decoder states ``[1, n, hidden_size]`` to logits ``[1, n, vocab_size]``."""


class TransformersBackbone(Backbone):
    """A causal LM of transformers.

    The backbone works on a copy that shares the parameters of the given model, which stays as it is.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Use PyTorch's own kernels; :func:`~entmtp.models.build.build_backbone` finds and tests faster ones."""
        super().__init__(model, _text_config(model), "eager")
        self.cache_shapes = []  # the self-test finds them
        self._fused_decoder: FusedDecoder | None = None
        self._triton_decoder: TritonDecoder | None = None
        self._caches: WeakKeyDictionary[TreeCache, Cache] = WeakKeyDictionary()
        self.use_model(model)

    @property
    def model(self) -> PreTrainedModel:
        return self._model

    @property
    def input_layer(self) -> torch.nn.Module:
        layer: torch.nn.Module = self._model.get_input_embeddings()
        return layer

    @property
    def output_layer(self) -> torch.nn.Module:
        layer: torch.nn.Module = self._model.get_output_embeddings()
        return layer

    @property
    def eos_token_ids(self) -> frozenset[int]:
        config = getattr(self.model, "generation_config", None)
        eos = getattr(config, "eos_token_id", None)
        return frozenset([] if eos is None else [eos] if isinstance(eos, int) else eos)

    @property
    def decoder(self) -> torch.nn.Module:
        """The model without its output layer."""
        return getattr(self.model, self.model.base_model_prefix)

    @property
    def _prefill_multiple(self) -> int:
        # Kernels are built per shape (oneDNN's, CUDA graphs), and are few this way.
        return PREFILL_MULTIPLE if self._fused_decoder is None and self._triton_decoder is None else 1

    def check_feature_layers(self, layers: Sequence[int]) -> None:
        super().check_feature_layers(layers)
        if layers and self._fused_decoder is None:
            self._decoder_layers()

    def release(self) -> None:
        """Does nothing: transformers' model owns its memory."""

    def use_model(self, model: PreTrainedModel) -> None:
        """Run on a copy of ``model`` that shares its parameters, with PyTorch's own layers."""
        self._set_model(sharing_copy(model))
        self.config = _text_config(self._model)

    def use_kernels(self, kernels: Kernels, siblings: Sequence[Sequence[torch.nn.Linear]]) -> None:
        """Run layers with this kernel choice; each group of ``siblings``, which share their input, is merged.

        Raises:
            EntMTPError: if the choice can't run this model.
        """
        self.kernels = kernels
        if self.make_layer is None:
            dequantize_layers(self.model)
            if CHOICES[kernels].merges:
                merge_in_place(self.model, siblings)
            self._set_model(self.model)
            if CHOICES[kernels].is_triton:
                self._triton_decoder = _triton_decoder(self.decoder)
        else:
            fused = None
            output_layer: Any = self._model.get_output_embeddings()
            if CHOICES[kernels].fuses and self.model.config._attn_implementation == attention.NAME:
                fused = fused_decoder(self.decoder, output_layer, self.config, CHOICES[kernels].digits)
            # A fused decoder is separate: any caller may run the model's own with any cache.
            unchanged = None if fused is None else self.decoder
            replace_linear_layers(self.model, siblings, self.make_layer, output_layer, unchanged)
            self._set_model(self.model)  # so that logits come from the new output layer
            self._fused_decoder = fused

    def _set_model(self, model: PreTrainedModel) -> None:
        self._model: PreTrainedModel = model.eval().requires_grad_(False)
        self._output = _output_of(model)
        self._layers: torch.nn.ModuleList | None = None
        self._fused_decoder = None
        self._triton_decoder = None

    def _decoder_layers(self) -> torch.nn.ModuleList:
        """The decoder's layers; raises EntMTPError where they can't be found."""
        if self._layers is None:
            self._layers = decoder_layers(self.decoder, self.config)
        return self._layers

    def _output_logits(self, states: torch.Tensor) -> torch.Tensor:
        return self._output(states)

    def _forward(
        self,
        tokens: torch.Tensor,
        window: AttentionWindow,
        kv_range: KvRange,
        cache: TreeCache,
        feature_layers: Sequence[int],
    ) -> States:
        if self._fused_decoder is not None:
            states: States = self._fused_decoder(tokens, window, self._shared_sliding_window(), cache, feature_layers)
            return states
        if self._triton_decoder is not None and self._triton_decoder.takes(tokens):
            return self._triton_decoder(tokens, window, self._layer_windows(), cache, feature_layers)
        if not feature_layers:
            return States.of_hidden(self._decode(tokens, window, kv_range, cache))
        features = FeatureBuffer(feature_layers, (*tokens.shape, self.hidden_size), self.dtype, self.device)
        with features.filled_by(self._decoder_layers()):
            hidden = self._decode(tokens, window, kv_range, cache)
        return States(hidden, features.features)

    def _decode(
        self, tokens: torch.Tensor, window: AttentionWindow, kv_range: KvRange, cache: TreeCache
    ) -> torch.Tensor:
        """Decoder states ``[batch, n, hidden_size]``, by transformers' code."""
        visible = window.visible(kv_range)
        masks = {
            kind: self._additive(visible if size is None else visible & window.within_sliding_window(kv_range, size))
            for kind, size in self._sliding_windows().items()
        }
        output = self.decoder(
            input_ids=tokens,
            attention_mask=masks.get(None, masks),
            position_ids=window.positions,
            past_key_values=self._cache_of(cache),
            use_cache=True,
        )
        hidden: torch.Tensor = output.last_hidden_state.to(self.device)
        return hidden

    def _verify(
        self,
        tokens: torch.Tensor,
        window: AttentionWindow,
        kv_range: KvRange,
        cache: TreeCache,
        feature_layers: Sequence[int],
    ) -> tuple[torch.Tensor, States]:
        if self._fused_decoder is not None and isinstance(self._output, FusedLinear):
            sliding_window = self._shared_sliding_window()
            return self._fused_decoder.verify(tokens, window, sliding_window, cache, feature_layers, self._output)
        return super()._verify(tokens, window, kv_range, cache, feature_layers)

    def _cache_of(self, cache: TreeCache) -> Cache:
        """The cache as transformers' layers use it; made once."""
        if cache not in self._caches:
            self._caches[cache] = transformers_cache(cache.tree_layers)
        return self._caches[cache]

    def _sliding_windows(self) -> dict[str | None, int | None]:
        """Size of the sliding window of each layer type, or None; the type is None where the model has no types."""
        size: int | None = getattr(self.config, "sliding_window", None)
        slides = size is not None and self.applies_sliding_window
        layer_types: set[str | None] = set(getattr(self.config, "layer_types", None) or [None])
        return {kind: size if slides and kind in (None, "sliding_attention") else None for kind in layer_types}

    def _layer_windows(self) -> list[int | None]:
        """Size of the sliding window of each layer, or None."""
        sizes = self._sliding_windows()
        return [sizes[kind] for kind in getattr(self.config, "layer_types", None) or [None] * len(self.cache_shapes)]

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


def _text_config(model: PreTrainedModel) -> Any:
    return model.config.get_text_config(decoder=True)


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


def _triton_decoder(decoder: torch.nn.Module) -> TritonDecoder:
    """The decoder in Triton's kernels, with its layers' weights; raises EntMTPError if its kind is unknown."""
    from entmtp.models.kernels.triton.decoder import TritonDecoder, unsupported_reason

    if reason := unsupported_reason(decoder):
        raise EntMTPError(f"kernels: 'triton' {reason}; use 'eager'")
    return TritonDecoder(decoder)


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
