"""The likeliest tokens of logits and their log-probabilities in one call, instead of about six operators."""

from __future__ import annotations

from ctypes import byref
from dataclasses import dataclass

import torch

from entmtp.models.kernels.compiled import Guesses, library, profiled


@dataclass(frozen=True)
class TopK:
    """Memory of rows of logits and of the likeliest tokens that are found in them.

    Attributes:
        logits: ``[..., width]`` in float32 on a CPU.
        vocabulary: the tokens ``[width]`` that they belong to, int32 on a CPU.
        tokens, log_probs: ``[..., count]`` of the likeliest, int64 and float32.
    """

    logits: torch.Tensor
    vocabulary: torch.Tensor
    tokens: torch.Tensor
    log_probs: torch.Tensor

    @classmethod
    def of(cls, logits: torch.Tensor, vocabulary: torch.Tensor, count: int) -> TopK:
        """Memory for the ``count`` likeliest tokens of these logits, at most the whole vocabulary."""
        shape = *logits.shape[:-1], min(count, logits.shape[-1])
        tokens, log_probs = torch.empty(shape, dtype=torch.int64), torch.empty(shape)
        return cls(logits.contiguous(), vocabulary.contiguous(), tokens, log_probs)

    def structure(self) -> Guesses:
        """Addresses and sizes, for the kernels."""
        width = self.logits.shape[-1]
        return Guesses(
            *(tensor.data_ptr() for tensor in (self.logits, self.vocabulary, self.tokens, self.log_probs)),
            rows=self.logits.numel() // width,
            width=width,
            count=self.tokens.shape[-1],
            threads=torch.get_num_threads(),
        )


def top_k(logits: torch.Tensor, vocabulary: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``count`` likeliest tokens ``[..., count]`` of logits ``[..., width]``, and their log-probabilities.

    Arguments are as in :class:`TopK`.
    """
    found = TopK.of(logits, vocabulary, count)
    with profiled("entmtp::top_k"):
        library().entmtp_top_k(byref(found.structure()))
    return found.tokens, found.log_probs
