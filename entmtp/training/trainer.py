"""Training of draft heads on a corpus: cross-entropy on the next tokens and KL divergence from the model's own logits.

Logits over the full vocabulary would dominate the cost, so each step uses a sampled softmax (Jean et al. 2015). Its
candidates are the most frequent tokens, the batch's labels, and random other tokens. The random tokens' logits are
corrected by the log of the number of tokens that each represents.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from entmtp.errors import EntMTPError
from entmtp.files import write_whole
from entmtp.heads.registry import find_trained_heads
from entmtp.heads.stateless import StatelessHeads
from entmtp.models.backbone import Backbone
from entmtp.models.kernels.block_weight import dequantized
from entmtp.settings import TrainingSettings
from entmtp.training.dataset import Dataset
from entmtp.training.evaluate import HeadAccuracy, measure_accuracy

IGNORED = -100


@dataclass(frozen=True)
class Progress:
    """Progress report of a training."""

    step: int
    steps: int
    loss: float
    accuracy: HeadAccuracy | None = None


def new_heads(backbone: Backbone, dataset: Dataset, settings: TrainingSettings) -> StatelessHeads:
    """Untrained heads for ``backbone``, with the corpus's most frequent tokens as draft vocabulary."""
    heads_class = find_trained_heads(settings.kind)
    size = min(settings.draft_vocab_size, backbone.vocab_size)
    config = heads_class.config_class(
        hidden_size=backbone.hidden_size,
        vocab_size=backbone.vocab_size,
        num_heads=settings.num_heads,
        inner_size=settings.inner_size,
        draft_vocab_size=size,
        model_fingerprint=backbone.fingerprint,
    )
    torch.manual_seed(settings.seed)
    heads = heads_class(config)
    heads.draft_vocab.copy_(dataset.frequent_tokens(size, backbone.vocab_size))
    return heads


class Trainer:
    """Trains new heads and saves checkpoints to ``folder``, from which a second run continues.

    Raises:
        EntMTPError: if the corpus is another model's; from :meth:`train`, if the folder's checkpoint can't be read or
            was made with other settings, another corpus or another model.
    """

    def __init__(self, backbone: Backbone, dataset: Dataset, settings: TrainingSettings, folder: Path) -> None:
        self.settings, self.dataset, self.folder = settings, dataset, folder
        self.device = backbone.device
        if (width := dataset.states.shape[1]) != backbone.hidden_size:
            raise EntMTPError(
                f"corpus: its states have {width} units but the model's have {backbone.hidden_size};"
                " write the corpus with this model"
            )
        self.heads = new_heads(backbone, dataset, settings)
        self.heads.attach(backbone)
        # Attaching sets the model's frozen output layer; training is in float32, whatever the model's type.
        self.heads.float().train()
        self.heads.output_weight = dequantized(self.heads.output_weight).float()
        self.heads.input_embeddings = dequantized(self.heads.input_embeddings).float()
        if self.heads.output_bias is not None:
            self.heads.output_bias = self.heads.output_bias.float()
        self.label_of = torch.full((backbone.vocab_size,), IGNORED)
        self.label_of[self.heads.draft_vocab.long().cpu()] = torch.arange(len(self.heads.draft_vocab))
        self.steps = settings.epochs * math.ceil(len(dataset.train) / settings.batch_size)
        self.optimizer = torch.optim.AdamW(
            self.heads.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.randomness = torch.Generator().manual_seed(settings.seed)
        self.step, self.loss = 0, math.nan

    def train(self, report: Callable[[Progress], None] = lambda progress: None) -> StatelessHeads:
        """Trains to the last step; reports every 20 steps, with held-out accuracy after each epoch.

        A training that was finished before repeats its last report.
        """
        self._resume()
        if self.step == self.steps:
            report(self._progress(ended=True))
        per_epoch = self.steps // self.settings.epochs
        order: torch.Tensor | None = None
        while self.step < self.steps:
            epoch, at = divmod(self.step, per_epoch)
            if at == 0 or order is None:
                order = self._shuffled(epoch)
            positions = order[at * self.settings.batch_size : (at + 1) * self.settings.batch_size]
            self.loss = self._optimize(positions)
            self.step += 1
            ended = self.step % per_epoch == 0
            if self.step % self.settings.checkpoint_every == 0 or ended:
                self._checkpoint()
            if self.step % 20 == 0 or ended:
                report(self._progress(ended))
        return self.heads.eval()

    def _progress(self, ended: bool) -> Progress:
        scores = measure_accuracy(self.heads, self.dataset, self.dataset.held_out) if ended else None
        return Progress(self.step, self.steps, self.loss, scores)

    def _shuffled(self, epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.settings.seed + epoch)
        return self.dataset.train[torch.randperm(len(self.dataset.train), generator=generator)]

    def _optimize(self, positions: torch.Tensor) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * self._schedule()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=_fast_bfloat16(self.device)):
            loss = self._loss(positions)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.heads.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()

    def _schedule(self) -> float:
        """Learning-rate factor: linear warm-up, then cosine decay to zero."""
        warmup = min(self.settings.warmup_steps, self.steps // 10)
        if self.step < warmup:
            return (self.step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (self.step - warmup) / max(1, self.steps - warmup)))

    def _loss(self, positions: torch.Tensor) -> torch.Tensor:
        batch = self.dataset.batch(positions, self.settings.num_heads).to(self.device)
        labels = self.label_of[batch.tokens[:, 1:].cpu()].masked_fill(~batch.valid.cpu(), IGNORED)
        candidates, correction = self._candidates(labels)
        states = self.heads.teacher_forced(batch.states[:, 0], batch.tokens[:, :-1])
        weight, bias = dequantized(self.heads.output_weight)[candidates], self.heads.output_bias
        offset = correction if bias is None else correction + bias[candidates]
        logits = nn.functional.linear(states, weight).float() + offset
        with torch.no_grad():
            teacher = nn.functional.linear(batch.states[:, 1:], weight).float() + offset
        valid = batch.valid.float()
        total = valid.sum().clamp(min=1)
        divergence = nn.functional.kl_div(
            logits.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True
        ).sum(-1)
        targets = _candidate_indices(candidates, labels).flatten().to(self.device)
        cross_entropy = nn.functional.cross_entropy(
            logits.flatten(0, 1), targets, ignore_index=IGNORED, reduction="sum"
        )
        # A batch may have no label at all: at answers' ends, or for tokens outside the draft vocabulary.
        labelled = (targets != IGNORED).sum().clamp(min=1)
        share = self.settings.distillation
        return share * (divergence * valid).sum() / total + (1 - share) * cross_entropy / labelled

    def _candidates(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sorted draft-vocabulary indices of the step's candidates, and the correction of their logits."""
        size = len(self.heads.draft_vocab)
        is_certain = torch.zeros(size, dtype=torch.bool)
        is_certain[: self.settings.frequent_candidates] = True
        is_certain[labels[labels != IGNORED]] = True
        others = (~is_certain).nonzero()[:, 0]
        sampled = others[torch.randperm(len(others), generator=self.randomness)[: self.settings.random_candidates]]
        candidates = torch.cat([is_certain.nonzero()[:, 0], sampled]).sort().values
        log_represented = math.log(len(others) / len(sampled)) if len(sampled) else 0.0
        correction = torch.where(is_certain[candidates], 0.0, log_represented)
        return candidates.to(self.device), correction.to(self.device)

    def _checkpoint(self) -> None:
        checkpoint = {
            "identity": self._identity(),
            "step": self.step,
            "loss": self.loss,
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "randomness": self.randomness.get_state(),
        }
        write_whole(self.folder / "checkpoint.pt", lambda unfinished: torch.save(checkpoint, unfinished))

    def _resume(self) -> None:
        path = self.folder / "checkpoint.pt"
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
        text = f"{self.settings.model_dump_json()} {self.dataset.fingerprint} {model}"
        return hashlib.sha256(text.encode()).hexdigest()


def _candidate_indices(candidates: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Index of each label among the sorted candidates; ignored labels stay ignored."""
    indices = torch.searchsorted(candidates.cpu(), labels.clamp(min=0))
    return indices.masked_fill(labels == IGNORED, IGNORED)


def _fast_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 on this device."""
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
