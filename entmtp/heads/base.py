"""Base of all draft heads: small networks on a frozen model that draft a tree of tokens for the next step.

Heads guess within a *draft vocabulary*: the most frequent tokens, in order of frequency (FR-Spec, arXiv 2502.14856).
Over the full vocabulary, the heads' output layer would cost more than a small model's whole step. Trained heads use the
model's own frozen output layer, restricted to those tokens, so a checkpoint contains trained weights only. Published
heads may have output layers of their own (:mod:`entmtp.heads.original`).
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from safetensors.torch import save_file
from torch import nn

from entmtp.errors import EntMTPError
from entmtp.files import write_text, write_whole
from entmtp.heads.configuration import DraftHeadsConfig
from entmtp.heads.interface import Drafter, TracedText
from entmtp.heads.linear_weights import LinearWeights, first_rows, free_parameters
from entmtp.models.cache import NO_DRAFT_CACHE, DraftCacheLayout, TreeCache
from entmtp.models.kernels import fused_top_k
from entmtp.models.kernels.block_weight import BlockWeight, Weight, dequantized, select_rows, weight_of
from entmtp.models.kernels.choices import draft_layer_maker
from entmtp.models.kernels.draft_weight import draft_weight
from entmtp.models.kernels.fused_linear import DraftLinear
from entmtp.models.kernels.packed_linear import InferenceLinear, MakeLayer
from entmtp.trees.topology import Topology

if TYPE_CHECKING:
    from entmtp.models.backbone import Backbone


CONFIG, WEIGHTS = "config.json", "model.safetensors"
"""Files of a checkpoint."""


class DraftHeads(nn.Module, ABC):
    """Base of all draft heads; attach them to a backbone before use.

    Attributes:
        kind: the family, such as "medusa"; methods and tree banks are chosen by it.
        is_trainable: whether ``entmtp train`` makes heads of this class.
    """

    config_class: type[DraftHeadsConfig] = DraftHeadsConfig
    config: DraftHeadsConfig
    kind: str
    is_trainable: ClassVar[bool] = False
    draft_vocab: torch.Tensor

    def __init__(self, config: DraftHeadsConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("draft_vocab", torch.arange(config.draft_vocab_size, dtype=torch.int32, device="cpu"))
        self.fingerprint = ""  # hash of the checkpoint's weights; set on loading
        self.output_weight: Weight = torch.empty(0)
        self.output_bias: torch.Tensor | None = None
        self.input_embeddings: Weight = torch.empty(0)
        self._make_layer: MakeLayer | None = None
        self._inference_layers: dict[tuple[str, int | None], InferenceLinear] = {}
        self._drafting_weights: dict[str, LinearWeights] | None = None

    def train(self, mode: bool = True) -> Self:
        """Sets the mode and drops the inference layers, since training changes the weights that they copied.

        Raises:
            ValueError: to train heads that only draft.
        """
        if mode and self.only_drafts:
            raise ValueError("heads: these only draft and can't be trained")
        self._inference_layers.clear()
        return super().train(mode)

    def linear_weights(self) -> dict[str, LinearWeights]:
        """Weights of the linear layers by name: views of the parameters, and the output layer's."""
        return {"output": (self.output_weight, self.output_bias)}

    def linear(self, name: str, states: torch.Tensor, rows: int | None = None) -> torch.Tensor:
        """Multiplies ``states [..., in]`` by the weight ``[out, in]`` of this name, or by its first ``rows``.

        Under inference mode it uses the model's kernels, with a layer that is cached.
        """
        if self.training or not torch.is_inference_mode_enabled() or self._make_layer is None:
            weight, bias = first_rows(self._weights(name), rows)
            return nn.functional.linear(states, dequantized(weight), bias)
        product: torch.Tensor = self.inference_layer(name, rows)(states)
        return product

    def inference_layer(self, name: str, rows: int | None = None) -> InferenceLinear:
        """The layer of attached heads that multiplies by a weight, as in :meth:`linear`, in the model's kernels."""
        assert self._make_layer is not None
        key = name, rows
        if key not in self._inference_layers:
            self._inference_layers[key] = self._make_layer(*first_rows(self._weights(name), rows))
        return self._inference_layers[key]

    def _weights(self, name: str) -> LinearWeights:
        return (self._drafting_weights or self.linear_weights())[name]

    @property
    def _is_fused(self) -> bool:
        """Whether the compiled kernels draft, in float32 on a CPU."""
        return self._make_layer is DraftLinear

    @property
    def only_drafts(self) -> bool:
        """Whether :meth:`draft_only` has freed the parameters."""
        return self._drafting_weights is not None

    def draft_only(self) -> Self:
        """Frees the parameters that attached heads don't draft with: they can't be trained or saved any more.

        Kernels that round the heads' weights to blocks read these blocks alone. Other kernels need the parameters.
        """
        if not self._is_fused or self.only_drafts:
            return self
        weights = self.linear_weights()
        rounded = {name: (draft_weight(weight), bias) for name, (weight, bias) in weights.items()}
        free_parameters(self, [weight for name, (weight, _) in weights.items() if weight is not rounded[name][0]])
        if "output" in rounded:
            self.output_weight, _ = rounded["output"]
        self._drafting_weights = rounded
        return self

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes the weights and the configuration to a folder, which is made if it is absent.

        Raises:
            ValueError: if the heads only draft.
        """
        if self.only_drafts:
            raise ValueError("heads: these only draft and can't be saved")
        folder = Path(folder)
        weights = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        dtype = str(self.dtype).removeprefix("torch.")
        fields = {"architectures": [type(self).__name__], "dtype": dtype, **self.config.fields()}
        write_whole(folder / WEIGHTS, lambda unfinished: save_file(weights, unfinished, metadata={"format": "pt"}))
        write_text(folder / CONFIG, json.dumps(fields, indent=2, sort_keys=True) + "\n")

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())

    @property
    def num_heads(self) -> int:
        """Depth of the deepest tree that these heads can draft."""
        return self.config.num_heads

    @property
    def cache_layout(self) -> DraftCacheLayout:
        """Draft cache of each token; empty for heads that guess from a decoder state alone."""
        return NO_DRAFT_CACHE

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """Decoder layers whose inputs the heads read, in this order; empty if they read the final decoder state."""
        return ()

    @property
    def feature_size(self) -> int:
        """Width of the features that the heads read of each token: one state per feature layer, or the final one."""
        return self.config.hidden_size * max(1, len(self.feature_layers))

    @abstractmethod
    def drafter(self, cache: TreeCache) -> Drafter:
        """Drafter for the slots of a cache that was made with :attr:`cache_layout`."""

    @abstractmethod
    def traced_text(self, features: torch.Tensor, tokens: torch.Tensor, begin: int) -> TracedText:
        """Reads a whole text for rank traces; its answer is ``tokens[begin:]``.

        ``features [n, feature_size]`` are those of ``tokens [n]`` (:class:`~entmtp.models.states.States`).
        """

    @property
    def state_dtype(self) -> torch.dtype:
        """Type of the features that the heads receive."""
        return self.dtype

    def attach(self, backbone: Backbone) -> Self:
        """Binds the model's embeddings and output layer; moves the heads to its device, dtype and kernels.

        Raises:
            EntMTPError: if the heads were made for another model, or read layers that it has not.
        """
        check_same_model(self.config, backbone)
        backbone.check_feature_layers(self.feature_layers)
        if not 0 <= int(self.draft_vocab.min()) <= int(self.draft_vocab.max()) < backbone.vocab_size:
            raise EntMTPError(
                f"heads: their draft vocabulary has tokens outside the model's {backbone.vocab_size};"
                " use heads made for this model"
            )
        self.to(backbone.device, backbone.dtype)
        self.bind_output(backbone.output_layer)
        table = backbone.embeddings
        # Detached, as a parameter would become one of the heads' own.
        self.input_embeddings = table if isinstance(table, BlockWeight) else table.detach()
        self._make_layer = draft_layer_maker(backbone.make_layer)
        backbone.release()  # the rows of the output layer were read all over the model's file
        return self.eval()

    def bind_output(self, layer: Any) -> None:
        """Restricts the model's output ``layer`` to the draft vocabulary, without a copy if that is the whole one."""
        tokens = self.draft_vocab.long()
        # In a model on several devices the output layer may be on another device.
        weight, bias = weight_of(layer), getattr(layer, "bias", None)
        bias = None if bias is None else bias.detach().to(tokens.device)
        if not isinstance(weight, BlockWeight):
            weight = weight.detach().to(tokens.device)
        if not torch.equal(tokens, torch.arange(weight.shape[0], device=tokens.device)):
            weight = select_rows(weight, tokens)
        self.output_weight = weight
        self.output_bias = None if bias is None else bias[tokens]

    @property
    def output_layers(self) -> Sequence[Weight]:
        """Output weights ``[draft_vocab_size, hidden_size]``: one for each head, or one for all."""
        return [self.output_weight]

    def draft_logits(self, states: torch.Tensor, head: int | None = None) -> torch.Tensor:
        """Logits over the draft vocabulary ``[..., draft_vocab_size]`` of head states ``[..., hidden_size]``.

        All states belong to ``head``. If it is None, they are those of the first heads, ``[..., heads, hidden_size]``.
        """
        return self.linear("output", states)

    @property
    def estimates_acceptance(self) -> bool:
        """Whether :meth:`estimated_odds` and the heads' expansions return estimates of acceptance."""
        return False

    def estimated_odds(self, states: torch.Tensor) -> torch.Tensor | None:
        """Log-odds ``[...]`` that a guess of head states ``[..., hidden_size]`` is accepted, given those before it.

        None if the heads estimate nothing. States are as for :meth:`draft_logits`.
        """
        return None

    def top_k(self, states: torch.Tensor, count: int, head: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Top-k tokens ``[..., count]`` of head states and their log-probabilities.

        States are as for :meth:`draft_logits`. ``count`` is cut to the size of the draft vocabulary.
        """
        return self.likeliest(self.draft_logits(states, head), count)

    def likeliest(self, logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Top-k tokens ``[..., count]`` of logits over the draft vocabulary and their log-probabilities.

        ``count`` is cut to the size of the draft vocabulary.
        """
        count = min(count, logits.shape[-1])
        if self._is_fused and torch.is_inference_mode_enabled():
            return fused_top_k.top_k(logits, self.draft_vocab, count)
        # Nothing of the vocabulary's size is converted first: a GPU widens 16-bit logits while it normalises them.
        log_probs = logits.log_softmax(-1, dtype=torch.float32)
        best = logits.topk(count, dim=-1).indices
        return self.draft_vocab[best].long(), log_probs.gather(-1, best)

    def check_trees(self, topologies: Sequence[Topology]) -> None:
        """Raises EntMTPError if a tree is deeper than the heads or has child ranks beyond their draft vocabulary."""
        for topology in topologies:
            topology.check_depth(self.num_heads)
            if topology.max_rank and max(topology.max_rank) >= self.config.draft_vocab_size:
                raise EntMTPError(
                    f"topology: {topology.name} asks for child rank {max(topology.max_rank)} but the draft vocabulary"
                    f" has {self.config.draft_vocab_size} tokens; use lower ranks"
                )


def check_same_model(config: DraftHeadsConfig, backbone: Backbone) -> None:
    """Raises EntMTPError if heads of this configuration were made for another model than ``backbone``."""
    check_sizes(config, backbone.hidden_size, backbone.vocab_size)
    trained_for, found = config.model_fingerprint, backbone.fingerprint
    if trained_for and trained_for != found:
        raise EntMTPError(
            f"heads: they were trained for the model with fingerprint {trained_for[:12]}, not {found[:12]};"
            " use heads made for this model, or train some with 'entmtp train'"
        )


def check_sizes(config: DraftHeadsConfig, hidden_size: int, vocab_size: int) -> None:
    """Raises EntMTPError if heads of this configuration don't fit a model of these sizes."""
    for field, theirs in (("hidden_size", hidden_size), ("vocab_size", vocab_size)):
        if (ours := getattr(config, field)) != theirs:
            raise EntMTPError(f"heads: {field} is {ours} but the model's is {theirs}; use heads made for this model")
