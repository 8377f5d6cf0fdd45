"""Tiny DFlash and DSpark checkpoints with random weights, in each published layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from tests.helpers.decoder_checkpoints import DecoderCheckpoint
from tests.helpers.published_checkpoints import Model

Layout = Literal["z-lab", "DeepSpec", "speculators"]
HEADS, KEY_HEADS, HEAD_DIM, INNER, EPS = 4, 2, 8, 40, 1e-5
DRAFT_VOCAB, MASK = 40, 7


@dataclass(frozen=True, kw_only=True)
class DFlashCheckpoint(DecoderCheckpoint):
    """A checkpoint of DFlash or DSpark heads.

    Attributes:
        block: tokens of a block.
        first: the state of a block that guesses the first token after the root: 0 is the root's own.
    """

    block: int
    first: int

    @property
    def guesses(self) -> int:
        """Tokens that a block guesses."""
        return self.block - self.first


def dflash(
    model: Model,
    layout: Layout = "z-lab",
    layers: int = 2,
    features: tuple[int, ...] = (2, 4, 5),
    block: int = 6,
    rank: int = 0,
    confidence: Literal["", "state", "token"] = "",
    draft_vocab: int | None = None,
    own_embeddings: bool = False,
    own_output: bool = False,
    anchor: bool | None = None,
    file: str = "model.safetensors",
    prefix: str = "",
    seed: int = 0,
    **options: Any,
) -> DFlashCheckpoint:
    """A checkpoint of a layout.

    ``confidence`` says what that head reads in addition to a state. ``anchor`` is speculators' ``sample_from_anchor``.
    ``options`` are further fields of the configuration.
    """
    generator = torch.Generator().manual_seed(seed)
    size = model.hidden
    tensors: dict[str, torch.Tensor] = {}

    def add(name: str, *shape: int) -> None:
        drawn = torch.randn(shape, generator=generator)
        is_norm = len(shape) == 1 and "bias" not in name
        tensors[name] = 1 + 0.3 * drawn if is_norm else drawn / shape[-1] ** 0.5

    add("fc.weight", size, len(features) * size)
    for layer in range(layers):
        _add_layer(add, f"layers.{layer}.", size)
    add("hidden_norm.weight", size)
    add("norm.weight", size)
    if own_embeddings:
        add("embed_tokens.weight", model.vocab, size)
    if own_output or draft_vocab:
        add("lm_head.weight", draft_vocab or model.vocab, size)
    if rank:
        add("markov_head.markov_w1.weight", model.vocab, rank)
        add("markov_head.markov_w2.weight", draft_vocab or model.vocab, rank)
    if confidence:
        add("confidence_head.proj.weight", 1, size + (rank if confidence == "token" else 0))
        add("confidence_head.proj.bias", 1)
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
        "layer_types": ["full_attention"] * layers,
    }
    own = {"block_size": block, "mask_token_id": MASK}
    dspark = {
        "markov_rank": rank,
        **({"markov_head_type": "vanilla"} if rank else {}),
        "enable_confidence_head": bool(confidence),
        **({"confidence_head_with_markov": confidence == "token"} if confidence else {}),
    }
    config, first = _CONFIGS[layout](sizes | options, own, dspark, features)
    if layout == "speculators":
        if draft_vocab is not None:
            config["draft_vocab_size"] = draft_vocab
        if anchor is not None:
            config["sample_from_anchor"], first = anchor, int(not anchor)
    return DFlashCheckpoint(
        file=file,
        config=config,
        tensors=tensors,
        features=features,
        guessable=guessable,
        prefix=prefix,
        options=options | sizes,
        block=block,
        first=first,
    )


def _add_layer(add: Callable[..., None], prefix: str, size: int) -> None:
    for name, count in {"q": HEADS, "k": KEY_HEADS, "v": KEY_HEADS}.items():
        add(f"{prefix}self_attn.{name}_proj.weight", count * HEAD_DIM, size)
    add(f"{prefix}self_attn.o_proj.weight", size, HEADS * HEAD_DIM)
    for name in ("q", "k"):
        add(f"{prefix}self_attn.{name}_norm.weight", HEAD_DIM)
    for name in ("gate", "up"):
        add(f"{prefix}mlp.{name}_proj.weight", INNER, size)
    add(f"{prefix}mlp.down_proj.weight", size, INNER)
    for name in ("input_layernorm", "post_attention_layernorm"):
        add(f"{prefix}{name}.weight", size)


def _z_lab(
    sizes: dict[str, Any], own: dict[str, Any], dspark: dict[str, Any], features: tuple[int, ...]
) -> tuple[dict[str, Any], int]:
    return {
        "architectures": ["DFlashDraftModel"],
        "auto_map": {"AutoModel": "dflash.DFlashDraftModel"},
        "model_type": "qwen3",
        "block_size": own["block_size"],
        "dflash_config": {
            "mask_token_id": own["mask_token_id"],
            "target_layer_ids": [layer - 1 for layer in features],
        },
        "num_target_layers": 8,
        "attention_bias": False,
        "sliding_window": None,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "rope_scaling": None,
        "rope_theta": 1_000_000,
        **sizes,
    }, 1


def _deepspec(
    sizes: dict[str, Any], own: dict[str, Any], dspark: dict[str, Any], features: tuple[int, ...]
) -> tuple[dict[str, Any], int]:
    return {
        "architectures": ["Qwen3DSparkModel"],
        "model_type": "qwen3",
        "target_layer_ids": [layer - 1 for layer in features],
        "num_target_layers": 8,
        "num_anchors": 512,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000},
        **sizes,
        **own,
        **dspark,
    }, 0


def _speculators(
    sizes: dict[str, Any], own: dict[str, Any], dspark: dict[str, Any], features: tuple[int, ...]
) -> tuple[dict[str, Any], int]:
    kind = "dspark" if dspark["markov_rank"] else "dflash"
    dspark = {**dspark, "sample_from_anchor": True}
    return {
        "architectures": ["DFlashDraftModel"],
        "speculators_model_type": kind,
        "speculators_version": "0.9.0",
        "aux_hidden_state_layer_ids": list(features),
        "sliding_window_non_causal": False,
        "transformer_layer_config": {"model_type": "qwen3", "rope_theta": 10_000.0, **sizes},
        "speculators_config": {"algorithm": kind, "verifier": {"name_or_path": "org/model"}},
        **own,
        **(dspark if kind == "dspark" else {}),
    }, int(kind == "dflash")


_CONFIGS = {"z-lab": _z_lab, "DeepSpec": _deepspec, "speculators": _speculators}
DFLASH_VARIANTS: dict[str, Callable[[Model], DFlashCheckpoint]] = {
    "z-lab": dflash,
    "z-lab, five states": lambda model: dflash(
        model, features=(1, 2, 4, 6, 7), layers=3, file="pytorch_model.bin", prefix="model."
    ),
    "DeepSpec": lambda model: dflash(model, "DeepSpec", own_embeddings=True, own_output=True),
    "DeepSpec, embeddings as a state": lambda model: dflash(model, "DeepSpec", features=(0, 3)),
    "DSpark": lambda model: dflash(model, "DeepSpec", rank=6, confidence="token", own_embeddings=True, own_output=True),
    "DSpark, estimate by the state": lambda model: dflash(model, "DeepSpec", rank=6, confidence="state", layers=1),
    "speculators": lambda model: dflash(model, "speculators", draft_vocab=DRAFT_VOCAB),
    "speculators, DSpark": lambda model: dflash(
        model, "speculators", rank=6, confidence="token", draft_vocab=DRAFT_VOCAB
    ),
    "speculators, DSpark from its masks": lambda model: dflash(model, "speculators", rank=6, anchor=False),
}
"""Checkpoints of every layout and variant, for a model of 8 layers."""
