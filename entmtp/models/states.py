"""States of a model's pass that others read: its logits are made from some, draft heads guess from these or others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class States(NamedTuple):
    """States of the tokens of a pass.

    Attributes:
        hidden: ``[..., hidden_size]`` the decoder states, after the last norm.
        features: ``[..., layers * hidden_size]`` the states that enter the requested layers, before any norm, layer
            after layer in the order requested. Without requested layers it is ``hidden`` itself.
    """

    hidden: torch.Tensor
    features: torch.Tensor

    @classmethod
    def of_hidden(cls, hidden: torch.Tensor) -> States:
        """States of a pass for which no layers were requested."""
        return cls(hidden, hidden)

    @classmethod
    def joined(cls, parts: Sequence[States]) -> States:
        """States of consecutive parts ``[n, ...]`` of a text."""
        hidden = torch.cat([part.hidden for part in parts])
        if all(part.features is part.hidden for part in parts):
            return cls.of_hidden(hidden)
        return cls(hidden, torch.cat([part.features for part in parts]))

    def at(self, row: int, count: int) -> States:
        """The first ``count`` states of a batch row."""
        hidden = self.hidden[row, :count]
        return States(hidden, hidden if self.features is self.hidden else self.features[row, :count])
