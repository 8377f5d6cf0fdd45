"""The self-test of transformers' models: what they must be, what they compute, and the attention that trees can use."""

from __future__ import annotations

from itertools import product
from typing import Any, NoReturn

import torch

from entmtp.errors import EntMTPError
from entmtp.models import attention
from entmtp.models.cache import BufferShape, LayerShape
from entmtp.models.selftest import (
    CHAIN,
    OTHER,
    PROMPT,
    difference,
    in_one_line,
    in_one_pass,
    selftest_tokens,
    small_window,
    tolerance,
)
from entmtp.models.transformers_backbone import TransformersBackbone

_RECURRENT = "linear_attention", "mamba", "recurrent", "conv", "hybrid"
_MASKED = "full_attention", "sliding_attention"


def check_supported(backbone: TransformersBackbone) -> None:
    """Raise EntMTPError if the model has recurrent state, is an encoder-decoder, or has masks that trees can't use."""
    if reason := _unsupported_reason(backbone):
        _refuse(backbone, reason)


@torch.inference_mode()
def sequential_reference(backbone: TransformersBackbone) -> tuple[torch.Tensor, list[LayerShape]]:
    """Run the path of each of the tree's leaves alone through the unmodified model.

    Returns the logits ``[nodes + 1, vocab]`` of each node, and the shapes of the keys and values that the layers cache.

    Raises:
        EntMTPError: if the model fails on a plain pass.
    """
    tokens = selftest_tokens(backbone)
    prompt, nodes = tokens[:PROMPT], tokens[PROMPT:]
    rows: dict[int, torch.Tensor] = {}
    with small_window(backbone):
        for path in CHAIN, OTHER:
            try:
                output = backbone.model(input_ids=torch.cat([prompt, nodes[path]])[None], use_cache=True)
            except Exception as error:  # any type: the code that runs is the model's
                _refuse(backbone, f"a plain pass raised {in_one_line(error)}")
            rows |= zip(path, output.logits[0, -len(path) :])
    return torch.stack([rows[node] for node in sorted(rows)]).float(), _cache_shapes(backbone, output)


def _cache_shapes(backbone: TransformersBackbone, output: Any) -> list[LayerShape]:
    """Shapes of the keys and values of each layer; layers that share another layer's cache are not listed."""
    layers = getattr(output.past_key_values, "layers", None)
    if not layers:
        _refuse(backbone, "it caches no keys and values of earlier tokens")
    return [(BufferShape.of(layer.keys), BufferShape.of(layer.values)) for layer in layers]


def choose_attention(backbone: TransformersBackbone, expected: torch.Tensor) -> None:
    """Set the fastest attention with which a tree's logits equal ``expected`` (:func:`sequential_reference`).

    This also finds out whether the model applies its sliding window.

    Raises:
        EntMTPError: if every attention fails.
    """
    # Some models have a sliding window in their configuration but ignore it.
    windows = (True, False) if getattr(backbone.config, "sliding_window", None) else (True,)
    failure = None
    with small_window(backbone):
        for backbone.applies_sliding_window, implementation in product(windows, (attention.NAME, "eager")):
            failure = _try(backbone, implementation, expected)
            if failure is None:
                return
    _refuse(backbone, str(failure))


def _unsupported_reason(backbone: TransformersBackbone) -> str | None:
    """Reason, from the model's class and configuration, why it is unsupported; None if there is none."""
    config = backbone.config
    if backbone.model.config.is_encoder_decoder:
        return "it is an encoder-decoder"
    kinds = dict.fromkeys(getattr(config, "layer_types", None) or [])
    recurrent = next((kind for kind in kinds if kind.startswith(_RECURRENT)), None)
    if recurrent or getattr(backbone.model, "_is_stateful", False):
        return f"its {recurrent or 'state-space'} layers have a recurrent state, which a tree cannot branch"
    if unknown := [kind for kind in kinds if kind not in _MASKED]:
        return f"its {unknown[0]} layers have an attention pattern that no tree mask covers"
    if "local" in (getattr(config, "attention_layers", None) or []):
        return "its local attention layers count cache rows instead of token positions"
    return None


def _refuse(backbone: TransformersBackbone, reason: str) -> NoReturn:
    raise EntMTPError(
        f"model: type '{backbone.config.model_type}' is not supported because {reason};"
        " use a decoder-only attention model such as Llama, Qwen3, Mistral, Gemma or GPT-2"
    )


@torch.inference_mode()
def _try(backbone: TransformersBackbone, implementation: str, expected: torch.Tensor) -> str | None:
    """Run the tree with an attention implementation; return the reason why it fails, or None."""
    try:
        backbone.model.set_attn_implementation(implementation)
        logits = in_one_pass(backbone)
    except Exception as error:  # any type: the code that runs is the model's
        return f"a tree pass raised {in_one_line(error)}"
    found = difference(logits, expected)
    if not found <= tolerance(backbone):
        return f"a tree in one pass differs from its paths run alone by {found:.1e} of the largest logit"
    return None
