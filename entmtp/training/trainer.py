"""Training of draft heads on a corpus, common to all kinds: optimizer, schedule, checkpoints and reports."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import nn

from entmtp.errors import EntMTPError
from entmtp.files import write_whole
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.models.kernels.block_weight import dequantized
from entmtp.settings import TrainingSettings
from entmtp.training.dataset import Dataset
from entmtp.training.evaluate import HeadAccuracy
from entmtp.training.optimizer import HeadsOptimizer
from entmtp.training.sampled_softmax import IGNORED, Candidates, SampledOutput

Heads = TypeVar("Heads", bound=DraftHeads)


@dataclass(frozen=True)
class Progress:
    """Progress report of a training."""

    step: int
    steps: int
    loss: float
    accuracy: HeadAccuracy | None = None


class Trainer(ABC, Generic[Heads]):
    """Trains new heads and saves checkpoints, from which a second run continues.

    Attributes:
        default_positions: positions per optimizer step, unless the settings say otherwise.

    Raises:
        EntMTPError: if the corpus is another model's; from :meth:`train`, if the checkpoint can't be read or was made
            with other settings, another corpus or another model.
    """

    default_positions = 512

    def __init__(self, backbone: Backbone, dataset: Dataset, settings: TrainingSettings, checkpoint: Path) -> None:
        self.settings, self.dataset, self.checkpoint = settings, dataset, checkpoint
        self.device = backbone.device
        if dataset.hidden_size != backbone.hidden_size:
            raise EntMTPError(
                f"corpus: its states have {dataset.hidden_size} units but the model's have {backbone.hidden_size};"
                " write the corpus with this model"
            )
        torch.manual_seed(settings.seed)
        self.heads = self.new_heads(backbone)
        size = min(settings.draft_vocab_size, backbone.vocab_size)
        self.heads.draft_vocab.copy_(dataset.frequent_tokens(size, backbone.vocab_size))
        self.heads.attach(backbone)
        # Attaching sets the model's frozen output layer; training is in float32, whatever the model's type.
        self.heads.float().train()
        self.heads.output_weight = dequantized(self.heads.output_weight).float()
        self.heads.input_embeddings = dequantized(self.heads.input_embeddings).float()
        if self.heads.output_bias is not None:
            self.heads.output_bias = self.heads.output_bias.float()
        self.label_of = torch.full((backbone.vocab_size,), IGNORED)
        self.label_of[self.heads.draft_vocab.long().cpu()] = torch.arange(len(self.heads.draft_vocab))
        matrices = self.matrices() if fast_bfloat16(self.device) else ()
        self.optimizer = HeadsOptimizer(self.heads.parameters(), matrices, settings)
        self.randomness = torch.Generator().manual_seed(settings.seed)
        self.step, self.loss = 0, math.nan

    @classmethod
    @abstractmethod
    def feature_layers(cls, backbone: Backbone) -> tuple[int, ...]:
        """Layers of the model whose inputs the heads read; empty if they read the decoder states."""

    @property
    @abstractmethod
    def description(self) -> str:
        """Parts of the heads, in words for a model card."""

    @abstractmethod
    def new_heads(self, backbone: Backbone) -> Heads:
        """Untrained heads for ``backbone``; their draft vocabulary is set later."""

    def matrices(self) -> Sequence[nn.Parameter]:
        """Parameters of the heads that Muon moves, where the device is fast enough for that; none by default."""
        return ()

    @property
    @abstractmethod
    def examples(self) -> int:
        """Number of examples that an epoch goes through."""

    @property
    def positions(self) -> int:
        """Positions per optimizer step; about as many where examples are whole texts."""
        return self.settings.batch_size or self.default_positions

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Examples of an optimizer step."""

    @abstractmethod
    def loss_of(self, examples: torch.Tensor) -> torch.Tensor:
        """Loss of the ``examples [n]``, given by their numbers."""

    @abstractmethod
    def accuracy(self) -> HeadAccuracy:
        """Accuracy on the held-out texts."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.settings.epochs * self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return math.ceil(self.examples / self.batch_size)

    def train(self, report: Callable[[Progress], None] = lambda progress: None) -> Heads:
        """Trains to the last step; reports every 20 steps, with held-out accuracy after each epoch.

        A training that was finished before repeats its last report.
        """
        self._resume()
        if self.step == self.steps:
            report(self._progress(ended=True))
        order: torch.Tensor | None = None
        while self.step < self.steps:
            epoch, at = divmod(self.step, self.steps_per_epoch)
            if at == 0 or order is None:
                order = self.shuffled(epoch)
            self.loss = self._optimize(order[at * self.batch_size : (at + 1) * self.batch_size])
            self.step += 1
            ended = self.step % self.steps_per_epoch == 0
            if self.step % self.settings.checkpoint_every == 0 or ended:
                self._save()
            if self.step % 20 == 0 or ended:
                report(self._progress(ended))
        return self.heads.eval()

    def shuffled(self, epoch: int) -> torch.Tensor:
        """The numbers of all examples in the order of an epoch."""
        return torch.randperm(self.examples, generator=torch.Generator().manual_seed(self.settings.seed + epoch))

    def sampled_output(self, tokens: torch.Tensor, valid: torch.Tensor) -> SampledOutput:
        """The output layer, restricted to candidates for the true ``tokens [...]`` where they are ``valid [...]``."""
        labels = self.label_of[tokens.cpu()].masked_fill(~valid.cpu(), IGNORED)
        vocabulary = len(self.heads.draft_vocab)
        candidates = Candidates.sample(vocabulary, labels, self.settings, self.randomness).to(self.device)
        offset, bias = candidates.correction, self.heads.output_bias
        return SampledOutput(
            dequantized(self.heads.output_weight)[candidates.indices],
            offset if bias is None else offset + bias[candidates.indices],
            candidates.targets(labels),
        )

    def _progress(self, ended: bool) -> Progress:
        return Progress(self.step, self.steps, self.loss, self.accuracy() if ended else None)

    def _optimize(self, examples: torch.Tensor) -> float:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast_bfloat16(self.device)):
            loss = self.loss_of(examples)
        loss.backward()
        nn.utils.clip_grad_norm_(self.heads.parameters(), 1.0)
        self.optimizer.step(self._schedule())
        return loss.item()

    def _schedule(self) -> float:
        """Learning-rate factor: linear warm-up, then cosine decay to zero."""
        warmup = min(self.settings.warmup_steps, self.steps // 10)
        if self.step < warmup:
            return (self.step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (self.step - warmup) / max(1, self.steps - warmup)))

    def _save(self) -> None:
        checkpoint = {
            "identity": self._identity(),
            "step": self.step,
            "loss": self.loss,
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "randomness": self.randomness.get_state(),
        }
        write_whole(self.checkpoint, lambda unfinished: torch.save(checkpoint, unfinished))

    def _resume(self) -> None:
        path = self.checkpoint
        if not path.exists():
            return
        try:
            saved = torch.load(path, map_location=self.device, weights_only=True)
            identity = saved["identity"]
        except Exception as error:  # torch, pickle and zipfile each raise their own types for a bad file
            raise EntMTPError(f"checkpoint: {path} can't be read ({type(error).__name__}); remove it") from error
        if identity != self._identity():
            raise EntMTPError(
                f"checkpoint: {path} was made with other settings, another corpus or another model;"
                " give another folder or remove the checkpoint"
            )
        self.heads.load_state_dict(saved["heads"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.randomness.set_state(saved["randomness"].cpu())
        self.step, self.loss = saved["step"], saved.get("loss", math.nan)

    def _identity(self) -> str:
        model = self.heads.config.model_fingerprint
        text = f"{self.settings.model_dump_json()} {self.optimizer.name} {self.dataset.fingerprint} {model}"
        return hashlib.sha256(text.encode()).hexdigest()


def fast_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 on this device."""
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
