"""Independent heads (the Medusa family): each guesses from the decoder state alone.

The guesses at a depth are therefore the same under every parent.
"""

from __future__ import annotations

from abc import abstractmethod

import torch

from entmtp.heads.interface import Proposal
from entmtp.heads.stateless import StatelessHeads
from entmtp.trees.batch import TreeBatch


class IndependentHeads(StatelessHeads):
    """Heads that all run in one pass."""

    kind = "medusa"

    @abstractmethod
    def head_states(self, hidden: torch.Tensor, heads: int) -> torch.Tensor:
        """States ``[n, heads, hidden_size]`` of the first ``heads`` heads for decoder states ``[n, hidden_size]``."""

    def expand(
        self, hidden: torch.Tensor, tokens: torch.Tensor, level: int, prefix_state: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        states = self.head_states(hidden, self.num_heads) if prefix_state is None else prefix_state
        return states[:, level], states

    def teacher_forced(self, hidden: torch.Tensor, tokens: torch.Tensor, heads: int | None = None) -> torch.Tensor:
        return self.head_states(hidden, heads or self.num_heads)

    def draft(self, hidden: torch.Tensor, root: torch.Tensor, trees: TreeBatch) -> Proposal:
        depth = trees.shape.depth
        if depth == 0:
            return Proposal.of_roots(root)
        drafting, _ = trees.internal_nodes(0)  # batch rows whose trees are not empty
        top_tokens, top_log_probs = self.top_k(self.head_states(hidden[drafting], depth), max(trees.shape.ranks))
        index = torch.zeros_like(root).scatter(0, drafting, torch.arange(len(drafting), device=root.device))[:, None]
        is_drafted = trees.depth > 0
        level = (trees.depth - 1).clamp(min=0)
        tokens = torch.where(is_drafted, top_tokens[index, level, trees.rank], 0)
        log_probs = torch.where(is_drafted, top_log_probs[index, level, trees.rank], 0.0)
        tokens[:, 0] = root
        return Proposal(tokens, log_probs)
