"""Log-likelihood of a text under the model: a score that every answer has, with or without a task's own score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from entmtp.models.backbone import LOGITS_CHUNK

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TextLikelihood:
    """Mean log-likelihood of texts after one prompt. Scores are cached by text.

    The model is the one that ``transformers`` loads, so that no kernel or cache of this package judges itself.
    """

    def __init__(self, model: PreTrainedModel, prompt: Sequence[int]) -> None:
        self._model = model
        self._prompt = list(prompt)
        self._scored: dict[tuple[int, ...], float] = {}

    def __call__(self, tokens: Sequence[int]) -> float:
        """Nats per token, at temperature 1: the mean of ``log P(token | prompt, tokens before it)`` over ``tokens``.

        Logits are as wide as the model computes them, their softmax is float32. At least one token is needed.
        """
        key = tuple(tokens)
        if key not in self._scored:
            self._scored[key] = _log_probs(self._model, self._prompt, key).mean().item()
        return self._scored[key]


@torch.inference_mode()
def _log_probs(model: PreTrainedModel, prompt: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
    """Log-probability of each of ``tokens`` after those before it ``[tokens]``, by one teacher-forced pass."""
    ids = torch.tensor([[*prompt, *tokens]], device=model.device)
    # The logits at the prompt's last token score the first of ``tokens``.
    found = cast(Any, model)(ids[:, :-1], use_cache=False, logits_to_keep=len(tokens))
    chosen = ids[0, len(prompt) :].to(found.logits.device)[:, None]
    chunks = zip(found.logits[0].split(LOGITS_CHUNK), chosen.split(LOGITS_CHUNK), strict=True)
    return torch.cat([logits.float().log_softmax(-1).gather(-1, its)[:, 0] for logits, its in chunks])
