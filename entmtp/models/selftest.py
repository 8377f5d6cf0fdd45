"""The self-test at load: a small tree in one pass must give the same logits as each of its paths run alone.

Every kernel choice must also agree with itself when it decodes one token at a time. Otherwise a tree is verified
against other tokens than plain decoding would write. Logits are compared within a tolerance. The tolerance of 16-bit
models finds errors but doesn't promise identical texts; `benchmarks.identity` counts identical texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any, NoReturn

import torch

from entmtp.errors import EntMTPError
from entmtp.models import attention
from entmtp.models.backbone import Backbone
from entmtp.models.cache import BufferShape, LayerShape
from entmtp.models.kernels.choices import CHOICES, HALF_TOLERANCE, ROUNDED_TOLERANCE, TOLERANCE
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Topology

_PATHS = Topology.of([(0,), (1,), (0, 0)])
_CHAIN = [0, 1, 3]
"""The nodes of the deepest path."""
_OTHER = [0, 2]
"""The nodes of the other leaf's path."""
_PROMPT = 4
_WINDOW = 3
_RECURRENT = "linear_attention", "mamba", "recurrent", "conv", "hybrid"
_MASKED = "full_attention", "sliding_attention"


def check_supported(backbone: Backbone) -> None:
    """Raise EntMTPError if the model has recurrent state, is an encoder-decoder, or has masks that trees can't use."""
    if reason := _unsupported_reason(backbone):
        _refuse(backbone, reason)


@torch.inference_mode()
def sequential_reference(backbone: Backbone) -> tuple[torch.Tensor, list[LayerShape]]:
    """Run the path of each of the tree's leaves alone through the unmodified model.

    Returns the logits ``[nodes + 1, vocab]`` of each node, and the shapes of the keys and values that the layers cache.

    Raises:
        EntMTPError: if the model fails on a plain pass.
    """
    tokens = _tokens(backbone)
    prompt, nodes = tokens[:_PROMPT], tokens[_PROMPT:]
    rows: dict[int, torch.Tensor] = {}
    with _small_window(backbone):
        for path in _CHAIN, _OTHER:
            try:
                output = backbone.model(input_ids=torch.cat([prompt, nodes[path]])[None], use_cache=True)
            except Exception as error:  # any type: the code that runs is the model's
                _refuse(backbone, f"a plain pass raised {_in_one_line(error)}")
            rows |= zip(path, output.logits[0, -len(path) :])
    return torch.stack([rows[node] for node in sorted(rows)]).float(), _cache_shapes(backbone, output)


def _cache_shapes(backbone: Backbone, output: Any) -> list[LayerShape]:
    """Shapes of the keys and values of each layer; layers that share another layer's cache are not listed."""
    layers = getattr(output.past_key_values, "layers", None)
    if not layers:
        _refuse(backbone, "it caches no keys and values of earlier tokens")
    return [(BufferShape.of(layer.keys), BufferShape.of(layer.values)) for layer in layers]


def choose_attention(backbone: Backbone, expected: torch.Tensor) -> None:
    """Set the fastest attention with which a tree's logits equal ``expected`` (:func:`sequential_reference`).

    This also finds out whether the model applies its sliding window.

    Raises:
        EntMTPError: if every attention fails.
    """
    # Some models have a sliding window in their configuration but ignore it.
    windows = (True, False) if getattr(backbone.config, "sliding_window", None) else (True,)
    failure = None
    with _small_window(backbone):
        for backbone.applies_sliding_window, implementation in product(windows, (attention.NAME, "eager")):
            failure = _try(backbone, implementation, expected)
            if failure is None:
                return
    _refuse(backbone, str(failure))


@torch.inference_mode()
def check_kernels(backbone: Backbone, expected: torch.Tensor) -> None:
    """Check that a token's logits depend on its own path alone, and are near ``expected``.

    ``expected`` comes from :func:`sequential_reference`.

    Raises:
        EntMTPError: if decoding with the backbone's kernels would not be lossless.
    """
    reason = None
    try:
        with _small_window(backbone):
            in_one_pass, one_at_a_time = _in_one_pass(backbone), _one_at_a_time(backbone)
        batch_difference = _difference(in_one_pass[_CHAIN], one_at_a_time)
        model_difference = _difference(in_one_pass, expected)
    except Exception as failure:  # any type: the code that runs is the model's
        reason = f"a pass raised {_in_one_line(failure)}"
    else:
        if not batch_difference <= _tolerance(backbone):
            reason = f"a token's logits depend on the other tokens of a pass, by {batch_difference:.1e} of the largest"
        elif not model_difference <= (ROUNDED_TOLERANCE if CHOICES[backbone.kernels].rounds else _tolerance(backbone)):
            reason = f"the logits differ from the model's own by {model_difference:.1e} of the largest"
    if reason:
        raise EntMTPError(
            f"kernels: '{backbone.kernels}' are refused for lossless decoding: {reason}; use {_alternative(backbone)}"
        )


def _alternative(backbone: Backbone) -> str:
    if backbone.kernels != "eager":
        return "'eager'"
    return "another model" if backbone.dtype == torch.float32 else "float32"


def _unsupported_reason(backbone: Backbone) -> str | None:
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


def _refuse(backbone: Backbone, reason: str) -> NoReturn:
    raise EntMTPError(
        f"model: type '{backbone.config.model_type}' is not supported because {reason};"
        " use a decoder-only attention model such as Llama, Qwen3, Mistral, Gemma or GPT-2"
    )


def _in_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


@contextmanager
def _small_window(backbone: Backbone) -> Iterator[None]:
    """Shrink the sliding window during the test, so that a few tokens show whether it is applied correctly."""
    window = getattr(backbone.config, "sliding_window", None)
    if window is None:
        yield
        return
    backbone.config.sliding_window = min(window, _WINDOW)
    try:
        yield
    finally:
        backbone.config.sliding_window = window


def _tokens(backbone: Backbone) -> torch.Tensor:
    """A prompt and four node tokens, all distinct, evenly spaced in the vocabulary."""
    count = _PROMPT + _PATHS.nodes + 1
    tokens = torch.arange(1, count + 1) * (backbone.vocab_size // (count + 2))
    return tokens.to(backbone.device)


@torch.inference_mode()
def _try(backbone: Backbone, implementation: str, expected: torch.Tensor) -> str | None:
    """Run the tree with an attention implementation; return the reason why it fails, or None."""
    try:
        backbone.model.set_attn_implementation(implementation)
        logits = _in_one_pass(backbone)
    except Exception as error:  # any type: the code that runs is the model's
        return f"a tree pass raised {_in_one_line(error)}"
    difference = _difference(logits, expected)
    if not difference <= _tolerance(backbone):
        return f"a tree in one pass differs from its paths run alone by {difference:.1e} of the largest logit"
    return None


def _in_one_pass(backbone: Backbone) -> torch.Tensor:
    """Logits ``[nodes + 1, vocab]`` of the tree's nodes, verified in one pass."""
    tokens = _tokens(backbone)
    cache = backbone.new_cache(slots=1, capacity=_PROMPT + _PATHS.nodes + 1)
    backbone.prefill(tokens[:_PROMPT].tolist(), 0, cache)
    trees = TreeBatch.of([_PATHS], backbone.device, rounded=False)
    kv_range = cache.kv_range([0], trees.width, padded=False)
    logits, _ = backbone.verify(tokens[None, _PROMPT:], trees, kv_range, cache)
    return logits[0].float()


def _one_at_a_time(backbone: Backbone) -> torch.Tensor:
    """Logits ``[len(_CHAIN), vocab]`` of the deepest path's nodes, decoded token by token."""
    tokens = _tokens(backbone)
    cache = backbone.new_cache(slots=1, capacity=_PROMPT + len(_CHAIN))
    backbone.prefill(tokens[:_PROMPT].tolist(), 0, cache)
    rows = []
    for node in _CHAIN:
        hidden = backbone.extend(tokens[None, _PROMPT + node, None], [0], cache)
        cache.append([0], [1])
        rows.append(backbone.logits(hidden)[0, 0])
    return torch.stack(rows).float()


def _difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference relative to the largest logit; NaN if a logit is NaN."""
    return ((logits - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()


def _tolerance(backbone: Backbone) -> float:
    return TOLERANCE if backbone.dtype == torch.float32 else HALF_TOLERANCE
