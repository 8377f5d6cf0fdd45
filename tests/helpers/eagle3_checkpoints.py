"""Tiny EAGLE-3 checkpoints with random weights, in each published layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from tests.helpers.decoder_checkpoints import DecoderCheckpoint
from tests.helpers.published_checkpoints import Model

Layout = Literal["SafeAILab", "speculators", "SGLang", "DeepSpec"]
HEADS, KEY_HEADS, HEAD_DIM, INNER, EPS = 4, 2, 8, 40, 1e-5
DRAFT_VOCAB = 40
FILES = {"SafeAILab": "pytorch_model.bin"}


@dataclass(frozen=True, kw_only=True)
class Eagle3Checkpoint(DecoderCheckpoint):
    """A checkpoint of EAGLE-3 heads; ``first`` is the prefix of the first decoder layer's tensors, in the layout."""

    first: str


def eagle3(
    model: Model,
    layout: Layout = "SafeAILab",
    layers: int = 1,
    features: tuple[int, ...] = (2, 4, 5),
    hidden: int | None = None,
    draft_vocab: int | None = DRAFT_VOCAB,
    norms_heads: bool = False,
    bias: Literal["", "qkv", "qkvo"] = "",
    own_embeddings: bool = False,
    own_output: bool = True,
    prefix: str = "",
    seed: int = 0,
    **options: Any,
) -> Eagle3Checkpoint:
    """A checkpoint of a layout.

    ``draft_vocab`` None is the whole vocabulary. ``options`` are further fields of the layout's configuration, the
    variants of the formula among them.
    """
    generator = torch.Generator().manual_seed(seed)
    size = hidden or model.hidden
    first = "midlayer." if layout in ("SafeAILab", "SGLang") else "layers.0."
    tensors: dict[str, torch.Tensor] = {}

    def add(name: str, *shape: int) -> None:
        drawn = torch.randn(shape, generator=generator)
        scale = 0.5 if name == "lm_head.weight" else 1  # so that float32 stays precise to 1e-6 over all depths
        is_norm = len(shape) == 1 and "bias" not in name
        tensors[name] = 1 + 0.3 * drawn if is_norm else scale * drawn / shape[-1] ** 0.5

    add("fc.weight", size, len(features) * model.hidden)
    for layer in range(layers):
        _add_layer(
            add, f"layers.{layer}." if layer else first, size, 2 * size if layer == 0 else size, norms_heads, bias
        )
    add("norm.weight", size)
    if options.get("norm_before_fc"):
        add("input_norm.weight", len(features) * model.hidden)
    if options.get("fc_norm"):
        for number in range(len(features)):
            add(f"fc_norm.{number}.weight", model.hidden)
    if own_embeddings:
        add("embed_tokens.weight", model.vocab, size)
    if own_output:
        add("lm_head.weight", draft_vocab or model.vocab, size)
    guessable = torch.arange(model.vocab)
    if draft_vocab is not None:
        guessable = torch.randperm(model.vocab, generator=generator)[:draft_vocab].sort().values
        tensors["d2t"] = guessable - torch.arange(draft_vocab)
        tensors["t2d"] = torch.zeros(model.vocab, dtype=torch.bool).index_fill(0, guessable, True)
    sizes = {
        "hidden_size": size,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "num_hidden_layers": layers,
        "vocab_size": model.vocab,
        "rms_norm_eps": EPS,
        "max_position_embeddings": 64,
        "hidden_act": "silu",
        "head_dim": HEAD_DIM,
    }
    own = {"draft_vocab_size": draft_vocab} if draft_vocab else {}
    if size != model.hidden:
        own["target_hidden_size"] = model.hidden
    if bias:
        sizes |= {"model_type": "qwen2"} if bias == "qkv" else {"attention_bias": True}
    config = _CONFIGS[layout](sizes, own | options, features)
    file = FILES.get(layout, "model.safetensors")
    return Eagle3Checkpoint(
        file=file,
        config=config,
        tensors=tensors,
        first=first,
        features=features,
        guessable=guessable,
        prefix=prefix,
        options=options | sizes,
    )


def _add_layer(add: Callable[..., None], prefix: str, size: int, width: int, norms_heads: bool, bias: str) -> None:
    counts = {"q": HEADS, "k": KEY_HEADS, "v": KEY_HEADS}
    for name, count in counts.items():
        add(f"{prefix}self_attn.{name}_proj.weight", count * HEAD_DIM, width)
        if name in bias:
            add(f"{prefix}self_attn.{name}_proj.bias", count * HEAD_DIM)
    add(f"{prefix}self_attn.o_proj.weight", size, HEADS * HEAD_DIM)
    if "o" in bias:
        add(f"{prefix}self_attn.o_proj.bias", size)
    if norms_heads:
        add(f"{prefix}self_attn.q_norm.weight", HEAD_DIM)
        add(f"{prefix}self_attn.k_norm.weight", HEAD_DIM)
    for name in ("gate", "up"):
        add(f"{prefix}mlp.{name}_proj.weight", INNER, size)
    add(f"{prefix}mlp.down_proj.weight", size, INNER)
    for name in ("input_layernorm", "post_attention_layernorm", *(["hidden_norm"] if width > size else [])):
        add(f"{prefix}{name}.weight", size)


def _safeailab(sizes: dict[str, Any], own: dict[str, Any], features: tuple[int, ...]) -> dict[str, Any]:
    """The authors' configuration, which does not name the layers that are read."""
    more = {"architectures": ["LlamaForCausalLM"], "torch_dtype": "float16", "use_cache": True, "bos_token_id": 1}
    return {"model_type": "llama", "tie_word_embeddings": False, "rope_scaling": None, **sizes, **more, **own}


def _speculators(sizes: dict[str, Any], own: dict[str, Any], features: tuple[int, ...]) -> dict[str, Any]:
    nested = {name: own.pop(name) for name in ("rope_theta", "rope_scaling", "rope_parameters") if name in own}
    return {
        "architectures": ["Eagle3Speculator"],
        "auto_map": {"": "eagle3.Eagle3SpeculatorConfig"},
        "speculators_model_type": "eagle3",
        "speculators_version": "0.3.0",
        "model_type": "speculator_model",
        "norm_before_residual": False,
        "eagle_aux_hidden_state_layer_ids": list(features),
        "transformer_layer_config": {"model_type": "llama", "attention_dropout": 0.0, **sizes, **nested},
        "speculators_config": {"algorithm": "eagle3", "verifier": {"name_or_path": "org/model"}},
        **own,
    }


def _sglang(sizes: dict[str, Any], own: dict[str, Any], features: tuple[int, ...]) -> dict[str, Any]:
    ids = {"eagle_aux_hidden_state_layer_ids": [layer - 1 for layer in features], "use_aux_hidden_state": True}
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "eagle_config": ids,
        "sliding_window": None,
        "use_sliding_window": False,
        "max_window_layers": 48,
        **sizes,
        **own,
    }


def _deepspec(sizes: dict[str, Any], own: dict[str, Any], features: tuple[int, ...]) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3Eagle3Model"],
        "model_type": "qwen3",
        "target_layer_ids": [layer - 1 for layer in features],
        "layer_types": ["full_attention"],
        "num_target_layers": 8,
        "ttt_length": 7,
        **sizes,
        **own,
    }


_CONFIGS: dict[Layout, Callable[[dict[str, Any], dict[str, Any], tuple[int, ...]], dict[str, Any]]] = {
    "SafeAILab": _safeailab,
    "speculators": _speculators,
    "SGLang": _sglang,
    "DeepSpec": _deepspec,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
EAGLE3_VARIANTS: dict[str, Callable[[Model], Eagle3Checkpoint]] = {
    "SafeAILab": eagle3,
    "SafeAILab, whole vocabulary": lambda model: eagle3(model, draft_vocab=None),
    "SafeAILab, own embeddings": lambda model: eagle3(model, own_embeddings=True),
    "SafeAILab, wider": lambda model: eagle3(model, hidden=48, own_embeddings=True),
    "SafeAILab, the model's output": lambda model: eagle3(model, own_output=False),
    "SafeAILab, linear positions": lambda model: eagle3(model, rope_scaling={"type": "linear", "factor": 4.0}),
    "speculators": lambda model: eagle3(model, "speculators", norm_before_residual=True, features=(1, 3, 6)),
    "speculators, one norm": lambda model: eagle3(model, "speculators", norm_before_fc=True),
    "speculators, biases": lambda model: eagle3(model, "speculators", bias="qkvo"),
    "speculators, three layers": lambda model: eagle3(model, "speculators", layers=3, norm_before_residual=True),
    "speculators, Llama 3's positions": lambda model: eagle3(
        model, "speculators", rope_parameters={"rope_theta": 500.0, **_LLAMA3}
    ),
    "SGLang": lambda model: eagle3(model, "SGLang", rope_theta=1e6, features=(2, 3, 7)),
    "SGLang, 3.1": lambda model: eagle3(model, "SGLang", fc_norm=True, norm_output=True, norms_heads=True),
    "SGLang, Qwen2's biases": lambda model: eagle3(model, "SGLang", bias="qkv"),
    "NeMo": lambda model: eagle3(model, "SGLang", prefix="model.", rope_scaling=_LLAMA3),
    "DeepSpec": lambda model: eagle3(
        model, "DeepSpec", features=(1, 2, 4, 5, 6), draft_vocab=None, norms_heads=True, rope_theta=1e6
    ),
}
"""Checkpoints of every layout and variant, for a model of 8 layers."""
