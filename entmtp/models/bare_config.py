"""Configuration of a model whose weights are run without transformers' code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class BareConfig:
    """Sizes of a model of one of the kinds in :mod:`entmtp.models.known_kinds`; names are transformers'.

    Attributes:
        attention_bias: whether the file has biases of queries, keys and values.
        rope_parameters: transformers' parameters of the rotary embedding.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_parameters: Mapping[str, Any]
    tie_word_embeddings: bool
    attention_bias: bool
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    @property
    def biased(self) -> frozenset[str]:
        """Names of the attention's projections that have a bias."""
        if self.model_type == "qwen2":
            return frozenset({"q_proj", "k_proj", "v_proj"})
        return frozenset({"q_proj", "k_proj", "v_proj", "o_proj"} if self.attention_bias else ())

    @property
    def norms_heads(self) -> bool:
        """Whether queries and keys have a norm over each head."""
        return self.model_type == "qwen3"


def transformers_config(config: BareConfig) -> PretrainedConfig:
    """The same configuration as transformers has it."""
    from transformers import AutoConfig

    made: PretrainedConfig = AutoConfig.for_model(**asdict(config))
    return made
