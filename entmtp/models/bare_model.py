"""A Llama-like model's weights without the code that runs them: all that the fused kernels need.

The modules have transformers' names, in transformers' order, so that the model has one fingerprint either way. They
need none of transformers' classes, whose import takes longer than a short answer.
"""

from __future__ import annotations

from typing import Protocol, cast

from torch import nn

from entmtp.models.bare_config import BareConfig
from entmtp.models.kernels.block_weight import BlockEmbedding, BlockLinear, plain_linear
from entmtp.models.rotary_embedding import RotaryEmbedding


class WeightSource(Protocol):
    """Parts of a model, by transformers' names."""

    def linear(self, name: str, shape: tuple[int, int], biased: bool) -> nn.Linear | BlockLinear:
        """Linear layer with a weight of this ``(out, in)``."""

    def embedding(self, name: str, shape: tuple[int, int]) -> nn.Embedding | BlockEmbedding:
        """Table ``(vocab_size, hidden_size)``."""

    def vector(self, name: str, size: int) -> nn.Parameter:
        """Weight of a norm."""

    def release(self) -> None:
        """Give back memory whose contents can be read again."""


class BareModel(nn.Module):
    """A causal LM's weights; they can't be run by themselves.

    Attributes:
        config: its sizes.
        model: the decoder.
        lm_head: the output layer.
        release: gives back memory whose contents can be read again, once the weights are packed.
    """

    def __init__(self, config: BareConfig, source: WeightSource, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self.config = config
        self.release = source.release
        self.model = BareDecoder(config, source, rotary)
        shape = config.vocab_size, config.hidden_size
        table = self.model.embed_tokens
        self.lm_head = output_of(table) if config.tie_word_embeddings else source.linear("lm_head", shape, False)


class BareDecoder(nn.Module):
    """Embedding table, layers, last norm and rotary embedding."""

    def __init__(self, config: BareConfig, source: WeightSource, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self.embed_tokens = source.embedding("model.embed_tokens", (config.vocab_size, config.hidden_size))
        self.layers = nn.ModuleList(
            BareLayer(config, source, f"model.layers.{number}") for number in range(config.num_hidden_layers)
        )
        self.norm = BareNorm(source.vector("model.norm", config.hidden_size), config.rms_norm_eps)
        self.rotary_emb = rotary


class BareLayer(nn.Module):
    """Attention, MLP and the norms before them."""

    def __init__(self, config: BareConfig, source: WeightSource, name: str) -> None:
        super().__init__()
        self.self_attn = BareAttention(config, source, f"{name}.self_attn")
        self.mlp = BareMlp(config, source, f"{name}.mlp")
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weight = source.vector(f"{name}.{norm}", config.hidden_size)
            self.add_module(norm, BareNorm(weight, config.rms_norm_eps))


class BareAttention(nn.Module):
    """Projections and the norms of their heads, where a model has such.

    Attributes:
        scaling: factor of the scores.
    """

    def __init__(self, config: BareConfig, source: WeightSource, name: str) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        queries, keys = (heads * self.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
        hidden = config.hidden_size
        shapes = {
            "q_proj": (queries, hidden),
            "k_proj": (keys, hidden),
            "v_proj": (keys, hidden),
            "o_proj": (hidden, queries),
        }
        for part, shape in shapes.items():
            self.add_module(part, source.linear(f"{name}.{part}", shape, part in config.biased))
        for norm in ("q_norm", "k_norm") if config.norms_heads else ():
            self.add_module(norm, BareNorm(source.vector(f"{name}.{norm}", self.head_dim), config.rms_norm_eps))


class BareMlp(nn.Module):
    """The gated MLP's projections."""

    def __init__(self, config: BareConfig, source: WeightSource, name: str) -> None:
        super().__init__()
        wide, narrow = (config.intermediate_size, config.hidden_size), (config.hidden_size, config.intermediate_size)
        for part, shape in {"gate_proj": wide, "up_proj": wide, "down_proj": narrow}.items():
            self.add_module(part, source.linear(f"{name}.{part}", shape, False))


class BareNorm(nn.Module):
    """An RMSNorm's weight ``[size]``."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = weight, eps


def output_of(table: nn.Embedding | BlockEmbedding) -> nn.Linear | BlockLinear:
    """Output layer with the weight of an embedding table itself."""
    if isinstance(table, BlockEmbedding):
        return BlockLinear(table.blocks)
    return plain_linear(cast("nn.Parameter", table.weight), None)
