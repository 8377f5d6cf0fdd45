"""Training of EAGLE-3 heads: every text is an example (:mod:`entmtp.training.training_time_test`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import rms_norm

from entmtp.errors import EntMTPError
from entmtp.heads.eagle3.configuration import Eagle3Config, default_feature_layers
from entmtp.heads.eagle3.heads import Eagle3Heads
from entmtp.models.backbone import Backbone
from entmtp.settings import TrainingSettings
from entmtp.training.dataset import Dataset, TextWithStates
from entmtp.training.evaluate import HeadAccuracy, TopCounts
from entmtp.training.sampled_softmax import divergence_and_cross_entropy
from entmtp.training.trainer import Trainer
from entmtp.training.training_time_test import TextBatch, level_states

_MEASURED_TEXTS, _TEXTS_PER_PASS = 256, 8


class Eagle3Trainer(Trainer[Eagle3Heads]):
    """Trainer of EAGLE-3 heads on the model's output layer and embeddings, which stay as they are."""

    default_positions = 1024  # Muon's products cost the same for any number

    def __init__(self, backbone: Backbone, dataset: Dataset, settings: TrainingSettings, checkpoint: Path) -> None:
        super().__init__(backbone, dataset, settings, checkpoint)
        per_text = dataset.answer_tokens / len(dataset.texts)
        self._batch_size = max(1, round(self.positions / per_text))

    @classmethod
    def feature_layers(cls, backbone: Backbone) -> tuple[int, ...]:
        layers = backbone.config.num_hidden_layers
        try:
            return tuple(default_feature_layers(layers))
        except EntMTPError as error:
            raise EntMTPError(
                f"kind: 'eagle3' heads read a low, a middle and a high layer, and a model of {layers} layers is too"
                " shallow for that; train hydra or medusa heads"
            ) from error

    @property
    def description(self) -> str:
        layers = ", ".join(map(str, self.heads.feature_layers))
        return (
            f"one decoder layer on the states that enter the model's layers {layers}, run again at each of"
            f" {self.heads.num_heads} depths"
        )

    def new_heads(self, backbone: Backbone) -> Eagle3Heads:
        heads = new_eagle3_heads(backbone, self.settings)
        _start_from_the_highest_state(heads, self.dataset.train[:_MEASURED_TEXTS])
        return heads

    @property
    def examples(self) -> int:
        return len(self.dataset.train)

    @property
    def batch_size(self) -> int:
        return self._batch_size

    def matrices(self) -> Sequence[nn.Parameter]:
        return [each for each in self.heads.parameters() if each.ndim == 2]

    def loss_of(self, examples: torch.Tensor) -> torch.Tensor:
        """Mean loss of the first levels, of a number that each step draws anew.

        So a step costs half of what all levels would, and the first levels, without which no tree gets deeper, weigh
        most.
        """
        settings = self.settings
        batch = TextBatch.of([self.dataset.train[number] for number in examples.tolist()], self.device)
        output = self.sampled_output(batch.labels, batch.valid)
        with torch.no_grad():
            teacher = output.logits(batch.hidden)
        losses = []
        levels = int(torch.randint(1, settings.levels + 1, (), generator=self.randomness))
        for level, states in enumerate(level_states(self.heads, batch, levels)):
            valid = batch.valid_at(level)
            student = output.logits(self.heads.output_states(states[valid]))
            every = torch.ones(len(student), dtype=torch.bool, device=self.device)
            losses.append(
                divergence_and_cross_entropy(
                    student, teacher[valid], output.targets[valid], every, settings.distillation
                )
            )
        return torch.stack(losses).mean()

    @torch.no_grad()
    def accuracy(self) -> HeadAccuracy:
        self.heads.eval()
        texts = self.dataset.held_out[:_MEASURED_TEXTS]
        counts = TopCounts(self.heads.num_heads)
        for first in range(0, len(texts), _TEXTS_PER_PASS):
            self._count(texts[first : first + _TEXTS_PER_PASS], counts)
        self.heads.train()
        return counts.accuracy()

    def _count(self, texts: Sequence[TextWithStates], counts: TopCounts) -> None:
        batch = TextBatch.of(texts, self.device)
        vocabulary = self.heads.draft_vocab.long()
        for level, states in enumerate(level_states(self.heads, batch, self.heads.num_heads)):
            valid = batch.valid_at(level)
            top = self.heads.draft_logits(states[valid]).topk(counts.widest, dim=-1).indices
            counts.add(level, vocabulary[top] == batch.labels[valid][:, None])


def new_eagle3_heads(backbone: Backbone, settings: TrainingSettings) -> Eagle3Heads:
    """Untrained heads of the model's own shape, with a norm for each of its states."""
    config = backbone.config
    heads = getattr(config, "num_attention_heads", None) or 1
    return Eagle3Heads(
        Eagle3Config(
            hidden_size=backbone.hidden_size,
            vocab_size=backbone.vocab_size,
            num_heads=settings.num_heads or Eagle3Config.num_heads,
            draft_vocab_size=min(settings.draft_vocab_size, backbone.vocab_size),
            model_fingerprint=backbone.fingerprint,
            feature_layers=default_feature_layers(config.num_hidden_layers),
            draft_hidden_size=backbone.hidden_size,
            intermediate_size=settings.inner_size or _intermediate_size(backbone),
            num_attention_heads=heads,
            num_key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or backbone.hidden_size // heads,
            rms_norm_eps=getattr(config, "rms_norm_eps", Eagle3Config.rms_norm_eps),
            max_position_embeddings=backbone.max_context,
            fc_norm=True,
        )
    )


@torch.no_grad()
def _start_from_the_highest_state(heads: Eagle3Heads, texts: Sequence[TextWithStates]) -> None:
    """Set the weights such that untrained heads hand on the highest state that they read as the decoder state.

    The layers add nothing to it. The last norm's weights are those that bring it nearest to the decoder states of
    ``texts``, by least squares.
    """
    weights, size = heads.weights, heads.config.hidden_size
    weights.fc.zero_()
    weights.fc[:, -size:].copy_(torch.eye(size))
    for number in range(heads.config.num_layers):
        weights.layer(number).attention_output.weight.zero_()
        weights.layer(number).down.weight.zero_()
    highest = torch.cat([each.states.features[:, -size:] for each in texts]).float()
    hidden = torch.cat([each.states.hidden for each in texts]).float()
    highest = rms_norm(highest, (size,), eps=heads.config.rms_norm_eps)
    weights.norm.copy_((highest * hidden).sum(0) / highest.square().sum(0))


def _intermediate_size(backbone: Backbone) -> int:
    """Width of the model's own hidden layers; GPT-2's default where its configuration names none."""
    return getattr(backbone.config, "intermediate_size", None) or 4 * backbone.hidden_size
