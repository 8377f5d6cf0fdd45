"""Training of heads that guess from one decoder state: every position of an answer is an example."""

from __future__ import annotations

from pathlib import Path

import torch

from entmtp.heads.registry import find_trained_heads
from entmtp.heads.trained import TrainedHeads
from entmtp.models.backbone import Backbone
from entmtp.settings import TrainingSettings
from entmtp.training.dataset import Dataset, Positions
from entmtp.training.evaluate import HeadAccuracy, measure_accuracy
from entmtp.training.sampled_softmax import divergence_and_cross_entropy
from entmtp.training.trainer import Trainer


class StatelessTrainer(Trainer[TrainedHeads]):
    """Trainer of Medusa and Hydra heads, given the true tokens before each guess."""

    def __init__(self, backbone: Backbone, dataset: Dataset, settings: TrainingSettings, checkpoint: Path) -> None:
        super().__init__(backbone, dataset, settings, checkpoint)
        self._positions, self._held_out = Positions.of(dataset.train), Positions.of(dataset.held_out)
        self._usable = self._positions.usable

    @classmethod
    def feature_layers(cls, backbone: Backbone) -> tuple[int, ...]:
        return ()

    @property
    def description(self) -> str:
        config = self.heads.config
        return f"{config.num_heads} heads, hidden layers {config.inner_size} wide"

    def new_heads(self, backbone: Backbone) -> TrainedHeads:
        heads_class = find_trained_heads(self.settings.kind)
        assert issubclass(heads_class, TrainedHeads)
        config = heads_class.config_class(
            hidden_size=backbone.hidden_size,
            vocab_size=backbone.vocab_size,
            draft_vocab_size=min(self.settings.draft_vocab_size, backbone.vocab_size),
            model_fingerprint=backbone.fingerprint,
        )
        config.num_heads = self.settings.num_heads or config.num_heads
        config.inner_size = self.settings.inner_size or config.inner_size
        return heads_class(config)

    @property
    def examples(self) -> int:
        return len(self._usable)

    @property
    def batch_size(self) -> int:
        return self.positions

    def accuracy(self) -> HeadAccuracy:
        return measure_accuracy(self.heads, self._held_out)

    def loss_of(self, examples: torch.Tensor) -> torch.Tensor:
        batch = self._positions.batch(self._usable[examples], self.heads.num_heads).to(self.device)
        output = self.sampled_output(batch.tokens[:, 1:], batch.valid)
        student = output.logits(self.heads.teacher_forced(batch.states[:, 0], batch.tokens[:, :-1]))
        with torch.no_grad():
            teacher = output.logits(batch.states[:, 1:])
        return divergence_and_cross_entropy(
            student.flatten(0, 1),
            teacher.flatten(0, 1),
            output.targets.flatten(),
            batch.valid.flatten(),
            self.settings.distillation,
        )
