"""Sequential heads (the Hydra family): each head also sees the tokens guessed before it on its path."""

from __future__ import annotations

from abc import abstractmethod

import torch

from entmtp.heads.interface import Proposal
from entmtp.heads.stateless import StatelessHeads
from entmtp.trees.batch import TreeBatch


class SequentialHeads(StatelessHeads):
    """Heads that run one after another; each tree level is one batched pass over the nodes with children."""

    kind = "hydra"

    @abstractmethod
    def path_inputs(
        self, hidden: torch.Tensor, tokens: torch.Tensor, level: int, depth: int, prefix_state: torch.Tensor | None
    ) -> torch.Tensor:
        """Inputs of heads ``level`` to ``depth`` for paths that end in ``tokens [n]`` at depth ``level``.

        The paths' roots were chosen from ``hidden [n, hidden_size]``. ``prefix_state [n, ...]`` is the result for the
        paths without their last tokens; it is None at level 0.
        """

    @abstractmethod
    def path_states(self, hidden: torch.Tensor, level: int, inputs: torch.Tensor) -> torch.Tensor:
        """States ``[n, hidden_size]`` of head ``level``, computed from its :meth:`path_inputs`."""

    def teacher_forced(self, hidden: torch.Tensor, tokens: torch.Tensor, heads: int | None = None) -> torch.Tensor:
        heads = heads or self.num_heads
        states, inputs = [], None
        for level in range(heads):
            inputs = self.path_inputs(hidden, tokens[:, level], level, heads, inputs)
            states.append(self.path_states(hidden, level, inputs))
        return torch.stack(states, dim=1)

    def expand(
        self, hidden: torch.Tensor, tokens: torch.Tensor, level: int, prefix_state: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = self.path_inputs(hidden, tokens, level, self.num_heads, prefix_state)
        return self.path_states(hidden, level, inputs), inputs

    def draft(self, hidden: torch.Tensor, root: torch.Tensor, trees: TreeBatch) -> Proposal:
        depth = trees.shape.depth
        if depth == 0:
            return Proposal.of_roots(root)
        tokens, log_probs = torch.zeros_like(trees.depth), torch.zeros_like(trees.depth, dtype=torch.float32)
        tokens[:, 0] = root
        inputs: torch.Tensor | None = None
        for level in range(depth):
            request, node = trees.internal_nodes(level)
            prefix_state = None if inputs is None else inputs[trees.parent_index[request, node]]
            inputs = self.path_inputs(hidden[request], tokens[request, node], level, depth, prefix_state)
            states = self.path_states(hidden[request], level, inputs)
            top_tokens, top_log_probs = self.top_k(states, trees.shape.ranks[level], level)
            on_level = trees.depth == level + 1
            guess = (trees.parent_index * top_tokens.shape[1] + trees.rank) * on_level
            tokens = torch.where(on_level, top_tokens.flatten()[guess], tokens)
            log_probs = torch.where(on_level, top_log_probs.flatten()[guess], log_probs)
        return Proposal(tokens, log_probs)
