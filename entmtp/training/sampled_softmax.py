"""Loss of draft heads over a sample of the draft vocabulary.

Logits over the full vocabulary would dominate the cost, so each step uses a sampled softmax (Jean et al. 2015). Its
candidates are the most frequent tokens, the batch's labels, and random other tokens. The random tokens' logits are
corrected by the log of the number of tokens that each represents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from entmtp.settings import TrainingSettings

IGNORED = -100


@dataclass(frozen=True)
class Candidates:
    """Candidates of a step.

    Attributes:
        indices: ``[n]`` of the draft vocabulary, ascending.
        correction: ``[n]`` added to their logits.
    """

    indices: torch.Tensor
    correction: torch.Tensor

    @classmethod
    def sample(
        cls, vocabulary: int, labels: torch.Tensor, settings: TrainingSettings, randomness: torch.Generator
    ) -> Candidates:
        """Candidates for ``labels``: indices of a draft ``vocabulary`` of this size, or :data:`IGNORED`, on the CPU."""
        is_certain = torch.zeros(vocabulary, dtype=torch.bool)
        is_certain[: settings.frequent_candidates] = True
        is_certain[labels[labels != IGNORED]] = True
        others = (~is_certain).nonzero()[:, 0]
        sampled = others[torch.randperm(len(others), generator=randomness)[: settings.random_candidates]]
        indices = torch.cat([is_certain.nonzero()[:, 0], sampled]).sort().values
        log_represented = math.log(len(others) / len(sampled)) if len(sampled) else 0.0
        return cls(indices, torch.where(is_certain[indices], 0.0, log_represented))

    def to(self, device: torch.device) -> Candidates:
        """Copy to ``device``."""
        return Candidates(self.indices.to(device), self.correction.to(device))

    def targets(self, labels: torch.Tensor) -> torch.Tensor:
        """Position of each label among the candidates; ignored labels stay ignored."""
        at = torch.searchsorted(self.indices, labels.clamp(min=0).to(self.indices.device))
        return at.masked_fill(labels.to(at.device) == IGNORED, IGNORED)


@dataclass(frozen=True)
class SampledOutput:
    """An output layer restricted to a step's candidates.

    Attributes:
        weight: ``[candidates, hidden_size]``.
        offset: ``[candidates]`` added to the logits: the correction, and the layer's bias where it has one.
        targets: ``[...]`` the true tokens among the candidates, or :data:`IGNORED`.
    """

    weight: torch.Tensor
    offset: torch.Tensor
    targets: torch.Tensor

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Logits ``[..., candidates]`` of ``states [..., hidden_size]``, in float32."""
        return nn.functional.linear(states, self.weight).float() + self.offset


def divergence_and_cross_entropy(
    student: torch.Tensor, teacher: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor, share: float
) -> torch.Tensor:
    """Mean loss over the ``valid [n]`` positions: KL divergence from the teacher and cross-entropy with the text.

    ``student [n, candidates]`` and ``teacher [n, candidates]`` are logits, ``targets [n]`` the text's tokens among the
    candidates. ``share`` weights the divergence, and the rest the cross-entropy. It leaves out tokens outside the draft
    vocabulary.
    """
    divergence = nn.functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    targets = targets.masked_fill(~valid, IGNORED)
    cross_entropy = nn.functional.cross_entropy(student, targets, ignore_index=IGNORED, reduction="sum")
    # A batch may have no label at all: at answers' ends, or for tokens outside the draft vocabulary.
    labelled = (targets != IGNORED).sum().clamp(min=1)
    return share * (divergence * valid).sum() / valid.sum().clamp(min=1) + (1 - share) * cross_entropy / labelled
