"""The self-test at load: a small tree in one pass must equal each of its paths run alone by the plain model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from entmtp.errors import EntMTPError
from entmtp.models import attention
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Topology

if TYPE_CHECKING:
    from entmtp.models.backbone import Backbone

_PATHS = Topology.of([(0,), (1,), (0, 0)])
_PROMPT = 4
_RECURRENT = "linear_attention", "mamba", "recurrent", "conv"


def prepare(backbone: Backbone) -> None:
    """Chooses the fastest attention that passes the self-test.

    Raises:
        EntMTPError: if the model keeps recurrent state, is an encoder-decoder, or fails with every attention.
    """
    _refuse_by_config(backbone)
    expected = _sequential(backbone)
    try:
        failure = _try(backbone, attention.NAME, expected)
    except attention.NeedsEagerAttention:
        failure = _try(backbone, "eager", expected)
    if failure:
        _refuse(backbone, failure)


def _refuse_by_config(backbone: Backbone) -> None:
    config = backbone.config
    if getattr(config, "is_encoder_decoder", False):
        _refuse(backbone, "it is an encoder-decoder")
    kinds = [kind for kind in getattr(config, "layer_types", None) or [] if kind.startswith(_RECURRENT)]
    if kinds or hasattr(config, "ssm_cfg") or hasattr(config, "state_size"):
        _refuse(backbone, f"its {kinds[0] if kinds else 'state-space'} layers keep a recurrent state, which a tree cannot branch")


def _refuse(backbone: Backbone, reason: str) -> None:
    raise EntMTPError(
        f"model: type '{backbone.config.model_type}' is not supported because {reason};"
        " use a decoder-only attention model such as Llama, Qwen3, Mistral, Gemma or GPT-2"
    )


def _tokens(backbone: Backbone) -> torch.Tensor:
    """A prompt and four distinct-looking node tokens, spread over the vocabulary."""
    count = _PROMPT + _PATHS.nodes + 1
    spread = torch.arange(1, count + 1) * (backbone.vocab_size // (count + 2))
    return spread.to(backbone.device)


@torch.inference_mode()
def _sequential(backbone: Backbone) -> torch.Tensor:
    """Logits ``[nodes + 1, vocab]`` of each node at the end of its own path, by the untouched model."""
    tokens = _tokens(backbone)
    prompt, nodes = tokens[:_PROMPT], tokens[_PROMPT:]
    rows = []
    for node in range(_PATHS.nodes + 1):
        path = nodes[_PATHS.ancestors[node].to(nodes.device)]
        ids = torch.cat([prompt, path])[None]
        rows.append(backbone.model(input_ids=ids, use_cache=False).logits[0, -1])
    return torch.stack(rows).float()


@torch.inference_mode()
def _try(backbone: Backbone, implementation: str, expected: torch.Tensor) -> str | None:
    """Runs the tree with an attention implementation; returns what went wrong, or None."""
    tokens = _tokens(backbone)
    try:
        backbone.model.set_attn_implementation(implementation)
        cache = backbone.new_cache(slots=1, capacity=_PROMPT + _PATHS.nodes + 1)
        backbone.prefill(tokens[:_PROMPT].tolist(), 0, cache)
        hidden = backbone.verify(tokens[None, _PROMPT:], TreeBatch.of([_PATHS], backbone.device), [0], cache)
        logits = backbone.logits(hidden)[0].float()
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError, KeyError, NotImplementedError) as error:
        return f"a tree pass raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    tolerance = 1e-3 if backbone.dtype == torch.float32 else 0.08
    difference = ((logits - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()
    if not difference <= tolerance:
        return f"a tree in one pass differs from its paths run alone by {difference:.1e} of the largest logit"
    return None
