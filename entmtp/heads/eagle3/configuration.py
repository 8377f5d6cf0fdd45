"""Configuration of EAGLE-3 heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from entmtp.errors import EntMTPError
from entmtp.heads.decoder_config import DecoderHeadsConfig

DEPTH = 8
"""Depth of the trees: the same layers are run again at each level, and published heads were trained for that."""

_DEFAULT_FEATURES = 3


@dataclass(kw_only=True)
class Eagle3Config(DecoderHeadsConfig):
    """Sizes and variants of EAGLE-3 heads; ``hidden_size`` and ``vocab_size`` are the model's.

    Attributes:
        feature_layers: as in the base. If empty, they are those of :func:`default_feature_layers`.
        draft_hidden_size: width of the heads' own layers, all of which run at each level of a tree.
        attention_bias, attention_output_bias: whether queries, keys and values have a bias, and the projection after
            attention.
        norms_heads: whether queries and keys have a norm over each head, as Qwen3's.
        norm_before_residual: whether the first layer adds its output to the normalised state, not to the state itself.
        norm_before_fc: whether the model's states have one norm, side by side.
        fc_norm: whether each of the model's states has a norm of its own.
        norm_output: whether the next level receives the last layer's output after its norm.
    """

    model_type: ClassVar[str] = "entmtp_eagle3"

    num_heads: int = DEPTH
    draft_hidden_size: int = 576
    attention_bias: bool = False
    attention_output_bias: bool = False
    norms_heads: bool = False
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False

    def __post_init__(self) -> None:
        """Checks what no single field can tell.

        Raises:
            EntMTPError: if fields contradict each other.
        """
        super().__post_init__()
        if self.norm_before_fc and self.fc_norm:
            raise EntMTPError("norm_before_fc and fc_norm are both true, and states can have only one of them")
        if not self.draft_hidden_size:
            raise EntMTPError("draft_hidden_size is 0")
        if self.draft_hidden_size != self.hidden_size and not (self.own_embeddings and self.own_output):
            raise EntMTPError(
                f"draft_hidden_size is {self.draft_hidden_size} and the model's hidden_size {self.hidden_size}, so the"
                " model's embeddings and output layer don't fit; own_embeddings and own_output must be true"
            )

    @property
    def width(self) -> int:
        return self.draft_hidden_size

    @property
    def num_features(self) -> int:
        """Number of the model's states that are read side by side."""
        return len(self.feature_layers) or _DEFAULT_FEATURES


def default_feature_layers(num_hidden_layers: int) -> list[int]:
    """Layers whose inputs EAGLE-3's authors read: a low, a middle and a high one of the model.

    Raises:
        EntMTPError: if the model has too few layers.
    """
    layers = [2, num_hidden_layers // 2, num_hidden_layers - 3]
    if sorted({*layers}) != layers:
        raise EntMTPError(
            f"feature_layers: the heads name none, and a model of {num_hidden_layers} layers is too shallow for the"
            " default ones (2, half of them, all but 3); use heads made for this model"
        )
    return layers
