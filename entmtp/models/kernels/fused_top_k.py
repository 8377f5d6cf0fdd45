"""The likeliest tokens of logits and their log-probabilities in one call, instead of about six operators."""

from __future__ import annotations

from ctypes import byref

import torch

from entmtp.models.kernels.compiled import Guesses, library, profiled


def top_k(logits: torch.Tensor, vocabulary: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``count`` likeliest tokens ``[..., count]`` of logits ``[..., width]``, and their log-probabilities.

    Args:
        logits: in float32 on a CPU.
        vocabulary: the tokens ``[width]`` that they belong to, int32 on a CPU.
        count: at most ``width``.
    """
    logits, vocabulary = logits.contiguous(), vocabulary.contiguous()
    shape = *logits.shape[:-1], count
    tokens, log_probs = torch.empty(shape, dtype=torch.int64), torch.empty(shape)
    guesses = Guesses(
        *(tensor.data_ptr() for tensor in (logits, vocabulary, tokens, log_probs)),
        rows=logits.numel() // logits.shape[-1],
        width=logits.shape[-1],
        count=count,
        threads=torch.get_num_threads(),
    )
    with profiled("entmtp::top_k"):
        library().entmtp_top_k(byref(guesses))
    return tokens, log_probs
