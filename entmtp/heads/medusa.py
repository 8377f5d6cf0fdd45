"""Medusa heads (arXiv 2401.10774, section 2.1.1): every head guesses from the same decoder state, independently.

Head i: ``scale_i * h + W2_i SiLU(W1_i rmsnorm(h))``, then the model's output layer on the draft vocabulary.
"""

from __future__ import annotations

import torch
from torch import nn

from entmtp.heads.base import DraftHeads, DraftHeadsConfig, Proposal, rms_norm
from entmtp.trees.batch import TreeBatch


class MedusaConfig(DraftHeadsConfig):
    """Configuration of Medusa heads."""

    model_type = "entmtp_medusa"


class MedusaHeads(DraftHeads):
    """Independent heads; the guesses at a depth are the same under every parent."""

    config_class = MedusaConfig
    kind = "medusa"

    def __init__(self, config: MedusaConfig) -> None:
        super().__init__(config)
        heads, inner, hidden = config.num_heads, config.inner_size, config.hidden_size
        self.up = nn.Linear(hidden, heads * inner, bias=False)
        self.post_init()

    def head_states(self, hidden: torch.Tensor, heads: int) -> torch.Tensor:
        """States ``[n, heads, hidden_size]`` of the first ``heads`` heads for decoder states ``[n, hidden_size]``."""
        inner = self.config.inner_size
        inputs = self.linear("up", rms_norm(hidden), self.up.weight[: heads * inner]).unflatten(-1, (heads, inner))
        return torch.stack([self.head_state(head, hidden, inputs[:, head]) for head in range(heads)], dim=1)

    def level(
        self, hidden: torch.Tensor, tokens: torch.Tensor, level: int, carried: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        states = self.head_states(hidden, self.num_heads) if carried is None else carried
        return states[:, level], states

    def teacher_forced(self, hidden: torch.Tensor, tokens: torch.Tensor, heads: int | None = None) -> torch.Tensor:
        return self.head_states(hidden, heads or self.num_heads)

    def fill(self, hidden: torch.Tensor, root: torch.Tensor, trees: TreeBatch) -> Proposal:
        depth = trees.shape.depth
        if depth == 0:
            return Proposal.of_roots(root)
        best, best_log_probs = self.best(self.head_states(hidden, depth), max(trees.shape.ranks))
        rows = torch.arange(len(root), device=root.device)[:, None]
        guessed = trees.depth > 0
        level = (trees.depth - 1).clamp(min=0)
        tokens = torch.where(guessed, best[rows, level, trees.rank], 0)
        log_probs = torch.where(guessed, best_log_probs[rows, level, trees.rank], 0.0)
        tokens[:, 0] = root
        return Proposal(tokens, log_probs)
