"""Trainers by the kind of heads."""

from __future__ import annotations

from typing import Any

from entmtp.heads.eagle3.heads import Eagle3Heads
from entmtp.heads.registry import find_trained_heads
from entmtp.training.eagle3 import Eagle3Trainer
from entmtp.training.stateless import StatelessTrainer
from entmtp.training.trainer import Trainer


def find_trainer(kind: str) -> type[Trainer[Any]]:
    """Trainer of the heads of this kind. Raises EntMTPError if there is none."""
    return Eagle3Trainer if issubclass(find_trained_heads(kind), Eagle3Heads) else StatelessTrainer
