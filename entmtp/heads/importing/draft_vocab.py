"""Draft vocabularies of published heads with decoder layers."""

from __future__ import annotations

import torch

from entmtp.heads.importing.tensors import Tensors


def take_draft_vocab(tensors: Tensors, vocab: int, configured: int | None, own_output: bool) -> torch.Tensor:
    """The model's tokens ``[D]`` that the heads guess, in the order of their output layer.

    ``vocab`` is the size of the model's vocabulary, and ``configured`` of the draft vocabulary, if it is named.

    Raises:
        EntMTPError: if the tensors and the configuration disagree on them.
    """
    count = configured or (tensors.size("lm_head.weight", 0) if own_output else vocab)
    if count > vocab:
        raise tensors.error(f"the draft vocabulary has {count} tokens and the model's {vocab}")
    tokens = torch.arange(count)
    if "d2t" in tensors or count < vocab:
        tokens = tokens + tensors.take_offsets("d2t", count)
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab or len(tokens.unique()) != count:
            raise tensors.error(f"tensor 'd2t' names tokens twice, or outside the vocabulary of {vocab}")
    if "t2d" in tensors:
        named = torch.zeros(vocab, dtype=torch.bool)
        named[tokens] = True
        if not torch.equal(tensors.take_mask("t2d", vocab), named):
            raise tensors.error("tensors 't2d' and 'd2t' disagree on the draft vocabulary")
    return tokens.to(torch.int32)
