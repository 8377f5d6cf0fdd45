"""Random weights of heads that run layers of their own."""

from typing import TypeVar

import torch

from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone

Heads = TypeVar("Heads", bound=DraftHeads)


def attached_at_random(heads: Heads, backbone: Backbone, seed: int) -> Heads:
    """The heads with random weights, attached; they can guess every token, in a random order of frequency."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in heads.parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.2 * drawn if parameter.ndim == 1 else drawn / parameter.shape[-1] ** 0.5
    heads.draft_vocab.copy_(torch.randperm(backbone.vocab_size, generator=generator))
    return heads.attach(backbone)
