"""Configuration of draft heads that have decoder layers of their own and read the model's states at several depths."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from entmtp.errors import EntMTPError, quoted
from entmtp.heads.configuration import DraftHeadsConfig


@dataclass(kw_only=True)
class DecoderHeadsConfig(DraftHeadsConfig):
    """Sizes of the layers; ``hidden_size`` and ``vocab_size`` are the model's.

    Attributes:
        feature_layers: decoder layers of the model whose inputs the heads read, in ascending order.
        num_layers: number of the heads' own layers, which run one after another.
        rope_parameters: transformers' parameters of the rotary embedding.
        own_embeddings: whether the heads have input embeddings of their own.
        own_output: whether they have an output layer of their own.
    """

    feature_layers: list[int] = field(default_factory=list)
    num_layers: int = 1
    intermediate_size: int = 1536
    num_attention_heads: int = 9
    num_key_value_heads: int = 3
    head_dim: int = 64
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 2048
    rope_parameters: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10_000.0})
    own_embeddings: bool = False
    own_output: bool = False

    def __post_init__(self) -> None:
        """Checks what no single field can tell.

        Raises:
            EntMTPError: if fields contradict each other.
        """
        layers = self.feature_layers
        if not all(type(layer) is int and layer >= 0 for layer in layers) or sorted({*layers}) != layers:
            raise EntMTPError(f"feature_layers is {quoted(layers)}, not layer numbers in ascending order")
        if min(self.num_layers, self.num_key_value_heads, self.head_dim) < 1:
            raise EntMTPError("num_layers, num_key_value_heads or head_dim is 0")
        if self.num_attention_heads % self.num_key_value_heads or self.head_dim % 2:
            raise EntMTPError(
                f"{self.num_attention_heads} attention heads of {self.head_dim} numbers can't share"
                f" {self.num_key_value_heads} key heads"
            )

    @property
    def width(self) -> int:
        """Width of the heads' own layers."""
        return self.hidden_size
