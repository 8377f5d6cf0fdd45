"""The self-test at load: a small tree in one pass must give the same logits as each of its paths run alone.

Every kernel choice must also agree with itself when it decodes one token at a time. Otherwise a tree is verified
against other tokens than plain decoding would write. Logits are compared within a tolerance. The tolerance of 16-bit
models finds errors but doesn't promise identical texts; `benchmarks.identity` counts identical texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from entmtp.errors import EntMTPError
from entmtp.models.backbone import Backbone
from entmtp.models.kernels.choices import CHOICES, HALF_TOLERANCE, TOLERANCE
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Topology

_PATHS = Topology.of([(0,), (1,), (0, 0)])
CHAIN = [0, 1, 3]
"""The nodes of the deepest path."""
OTHER = [0, 2]
"""The nodes of the other leaf's path."""
PROMPT = 4
"""Tokens before the tree."""
_WINDOW = 3


@torch.inference_mode()
def check_kernels(backbone: Backbone, expected: torch.Tensor | None) -> None:
    """Check that a token's logits depend on its own path alone, and are near ``expected``.

    ``expected`` comes from :func:`~entmtp.models.transformers_selftest.sequential_reference`. It is None where the
    model's own logits were compared before.

    Raises:
        EntMTPError: if decoding with the backbone's kernels would not be lossless.
    """
    reason, model_difference = None, 0.0
    try:
        with small_window(backbone):
            together, one_at_a_time = in_one_pass(backbone), _one_at_a_time(backbone)
        batch_difference = difference(together[CHAIN], one_at_a_time)
        if expected is not None:
            model_difference = difference(together, expected)
    except Exception as failure:  # any type: the code that runs is the model's
        reason = f"a pass raised {in_one_line(failure)}"
    else:
        if not batch_difference <= tolerance(backbone):
            reason = f"a token's logits depend on the other tokens of a pass, by {batch_difference:.1e} of the largest"
        elif not model_difference <= (CHOICES[backbone.kernels].tolerance or tolerance(backbone)):
            reason = f"the logits differ from the model's own by {model_difference:.1e} of the largest"
    if reason:
        raise EntMTPError(
            f"kernels: '{backbone.kernels}' are refused for lossless decoding: {reason}; use {_alternative(backbone)}"
        )


def _alternative(backbone: Backbone) -> str:
    if backbone.kernels != "eager":
        return "'eager'"
    return "another model" if backbone.dtype == torch.float32 else "float32"


def in_one_line(error: Exception) -> str:
    """An error's type and message."""
    return " ".join(f"{type(error).__name__}: {error}".split())


@contextmanager
def small_window(backbone: Backbone) -> Iterator[None]:
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


def selftest_tokens(backbone: Backbone) -> torch.Tensor:
    """A prompt and four node tokens, all distinct, evenly spaced in the vocabulary."""
    count = PROMPT + _PATHS.nodes + 1
    tokens = torch.arange(1, count + 1) * (backbone.vocab_size // (count + 2))
    return tokens.to(backbone.device)


def in_one_pass(backbone: Backbone) -> torch.Tensor:
    """Logits ``[nodes + 1, vocab]`` of the tree's nodes, verified in one pass."""
    tokens = selftest_tokens(backbone)
    cache = backbone.new_cache(slots=1, capacity=PROMPT + _PATHS.nodes + 1)
    backbone.prefill(tokens[:PROMPT].tolist(), 0, cache)
    trees = TreeBatch.of([_PATHS], backbone.device, rounded=False)
    kv_range = cache.kv_range([0], trees.width, padded=False)
    logits, _ = backbone.verify(tokens[None, PROMPT:], trees, kv_range, cache)
    return logits[0].float()


def _one_at_a_time(backbone: Backbone) -> torch.Tensor:
    """Logits ``[len(CHAIN), vocab]`` of the deepest path's nodes, decoded token by token."""
    tokens = selftest_tokens(backbone)
    cache = backbone.new_cache(slots=1, capacity=PROMPT + len(CHAIN))
    backbone.prefill(tokens[:PROMPT].tolist(), 0, cache)
    rows = []
    for node in CHAIN:
        hidden = backbone.extend(tokens[None, PROMPT + node, None], [0], cache)
        cache.append([0], [1])
        rows.append(backbone.logits(hidden)[0, 0])
    return torch.stack(rows).float()


def difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference relative to the largest logit; NaN if a logit is NaN."""
    return ((logits - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()


def tolerance(backbone: Backbone) -> float:
    """Allowed :func:`difference` of the backbone's type."""
    return TOLERANCE if backbone.dtype == torch.float32 else HALF_TOLERANCE
