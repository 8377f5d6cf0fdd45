"""Hydra heads (arXiv 2402.05109, section 3): a head also sees the tokens guessed before it on its own path.

Head i: ``scale_i * h + W2_i SiLU(A_i rmsnorm(h) + sum_j B_{i+1-j} rmsnorm(e_j))`` over the path's tokens ``e_0`` (the
root) ... ``e_i``. The paper concatenates the inputs, which is the same sum with one matrix for each (head, token)
pair; here a token's matrix depends on its *distance* to the guessed one, so that what is learnt about the previous
token serves all heads, and a node's contributions are computed once for its whole subtree.
"""

from __future__ import annotations

import torch
from torch import nn

from entmtp.heads.registry import register_heads
from entmtp.heads.sequential import SequentialHeads
from entmtp.heads.trained import TrainedHeads, TrainedHeadsConfig, rms_norm


class HydraConfig(TrainedHeadsConfig):
    """Configuration of Hydra heads."""

    model_type = "entmtp_hydra"


@register_heads
class HydraHeads(SequentialHeads, TrainedHeads):
    """Sequentially dependent heads; what a token contributes to the heads behind it is one product."""

    config_class = HydraConfig

    def __init__(self, config: HydraConfig) -> None:
        super().__init__(config)
        heads, inner, hidden = config.num_heads, config.inner_size, config.hidden_size
        self.from_state = nn.Linear(hidden, heads * inner, bias=False)
        self.from_token = nn.Linear(hidden, heads * inner, bias=False)
        self.post_init()

    def teacher_forced(self, hidden: torch.Tensor, tokens: torch.Tensor, heads: int | None = None) -> torch.Tensor:
        """As the base's, with one product for all tokens: training runs it for every batch."""
        heads = heads or self.num_heads
        lifted = self._from_state(hidden, heads)
        contributions = self._from_token(tokens[:, :heads], heads)
        states = []
        for head in range(heads):
            seen = [contributions[:, at, head - at] for at in range(head + 1)]
            states.append(self.head_state(head, hidden, lifted[:, head] + torch.stack(seen).sum(0)))
        return torch.stack(states, dim=1)

    def path_inputs(
        self, hidden: torch.Tensor, tokens: torch.Tensor, level: int, depth: int, prefix_state: torch.Tensor | None
    ) -> torch.Tensor:
        """What the hidden layers of the heads still to come receive ``[paths, depth - level, inner_size]``."""
        inputs = self._from_state(hidden, depth) if prefix_state is None else prefix_state[:, 1:]
        return inputs + self._from_token(tokens, depth - level)

    def path_states(self, hidden: torch.Tensor, level: int, inputs: torch.Tensor) -> torch.Tensor:
        return self.head_state(level, hidden, inputs[:, 0])

    def _from_state(self, hidden: torch.Tensor, heads: int) -> torch.Tensor:
        """The decoder state's part of each head's hidden layer ``[n, heads, inner_size]``."""
        weight = self.from_state.weight[: heads * self.config.inner_size]
        return self.linear("state", rms_norm(hidden), weight).unflatten(-1, (heads, -1))

    def _from_token(self, tokens: torch.Tensor, distances: int) -> torch.Tensor:
        """A token's part of the hidden layer of the heads 1 ... ``distances`` behind it ``[..., distances, inner]``."""
        weight = self.from_token.weight[: distances * self.config.inner_size]
        return self.linear("token", self.embed(tokens), weight).unflatten(-1, (distances, -1))
