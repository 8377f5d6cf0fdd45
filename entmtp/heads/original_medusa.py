"""Published Medusa heads: head i's logits are ``O_i block_n(... block_1(h))`` (arXiv 2401.10774)."""

from __future__ import annotations

from typing import ClassVar

import torch

from entmtp.heads.independent import IndependentHeads
from entmtp.heads.original import OriginalHeads, OriginalHeadsConfig
from entmtp.heads.registry import register_heads


class OriginalMedusaConfig(OriginalHeadsConfig):
    """Configuration of imported Medusa heads."""

    model_type: ClassVar[str] = "entmtp_published_medusa"


@register_heads
class OriginalMedusaHeads(IndependentHeads, OriginalHeads):
    """Independent heads of square blocks; the first block receives the decoder state."""

    config_class = OriginalMedusaConfig

    def __init__(self, config: OriginalMedusaConfig) -> None:
        super().__init__(config)

    def head_states(self, hidden: torch.Tensor, heads: int) -> torch.Tensor:
        return torch.stack([self.residual(head, hidden) for head in range(heads)], dim=1)
