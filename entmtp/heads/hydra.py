"""Hydra heads (arXiv 2402.05109, section 3): a head also sees the tokens guessed before it on its own path.

Head i: ``scale_i * h + W2_i SiLU(A_i rmsnorm(h) + sum_j B_{i+1-j} rmsnorm(e_j))`` over the path's tokens ``e_0`` (the
root) ... ``e_i``. The paper concatenates the inputs, which is the same sum with one matrix for each (head, token)
pair. Here a token's matrix depends on its *distance* to the guessed token. All heads therefore share what is learnt
about the previous token, and a node's contributions are computed once for its whole subtree.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from entmtp.heads.linear_weights import LinearWeights
from entmtp.heads.registry import register_heads
from entmtp.heads.sequential import SequentialHeads
from entmtp.heads.trained import TrainedHeads, TrainedHeadsConfig, rms_norm


class HydraConfig(TrainedHeadsConfig):
    """Configuration of Hydra heads."""

    model_type: ClassVar[str] = "entmtp_hydra"


@register_heads
class HydraHeads(SequentialHeads, TrainedHeads):
    """Sequentially dependent heads; a token's contributions to all later heads are one matrix product."""

    config_class = HydraConfig

    def __init__(self, config: HydraConfig) -> None:
        super().__init__(config)
        heads, inner, hidden = config.num_heads, config.inner_size, config.hidden_size
        self.from_state = nn.Linear(hidden, heads * inner, bias=False)
        self.from_token = nn.Linear(hidden, heads * inner, bias=False)

    def linear_weights(self) -> dict[str, LinearWeights]:
        own = {"state": (self.from_state.weight, None), "token": (self.from_token.weight, None)}
        return super().linear_weights() | own

    def teacher_forced(self, hidden: torch.Tensor, tokens: torch.Tensor, heads: int | None = None) -> torch.Tensor:
        """Head states given the true continuation.

        One matrix product covers all tokens, since training runs this in every step.
        """
        heads = heads or self.num_heads
        from_state = self._from_state(hidden, heads)
        contributions = self._from_token(tokens[:, :heads], heads)
        states = []
        for head in range(heads):
            terms = [contributions[:, at, head - at] for at in range(head + 1)]
            states.append(self.head_state(head, hidden, from_state[:, head] + torch.stack(terms).sum(0)))
        return torch.stack(states, dim=1)

    def path_inputs(
        self, hidden: torch.Tensor, tokens: torch.Tensor, level: int, depth: int, prefix_state: torch.Tensor | None
    ) -> torch.Tensor:
        """Inputs ``[paths, depth - level, inner_size]`` of the hidden layers of heads ``level`` to ``depth``."""
        inputs = self._from_state(hidden, depth) if prefix_state is None else prefix_state[:, 1:]
        return inputs + self._from_token(tokens, depth - level)

    def path_states(self, hidden: torch.Tensor, level: int, inputs: torch.Tensor) -> torch.Tensor:
        return self.head_state(level, hidden, inputs[:, 0])

    def _from_state(self, hidden: torch.Tensor, heads: int) -> torch.Tensor:
        """The decoder state's contributions ``[n, heads, inner_size]`` to each head's hidden layer."""
        rows = heads * self.config.inner_size
        return self.linear("state", rms_norm(hidden), rows).unflatten(-1, (heads, -1))

    def _from_token(self, tokens: torch.Tensor, distances: int) -> torch.Tensor:
        """A token's contributions ``[..., distances, inner_size]`` to the heads 1 ... ``distances`` after it."""
        rows = distances * self.config.inner_size
        return self.linear("token", self.embed(tokens), rows).unflatten(-1, (distances, -1))
