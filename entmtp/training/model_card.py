"""Model card of trained heads: their training data, settings and held-out accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from entmtp.files import write_text
from entmtp.heads.base import DraftHeads
from entmtp.methods import EAGLE3
from entmtp.training.evaluate import TOP
from entmtp.training.trainer import Trainer

_NAMES = {EAGLE3: "EAGLE-3"}


def write_model_card(
    folder: Path, trainer: Trainer[DraftHeads], model: str, prompts: str, metrics: Mapping[str, float]
) -> None:
    """Writes ``README.md`` next to the weights.

    ``prompts`` describes the training prompts; ``metrics`` are the final held-out accuracies.
    """
    settings, dataset, heads = trainer.settings, trainer.dataset, trainer.heads
    rows = "\n".join(
        f"| {head} | " + " | ".join(f"{metrics[f'head{head}_top{top}']:.3f}" for top in TOP) + " |"
        for head in range(1, heads.num_heads + 1)
    )
    text = f"""---
library_name: entmtp
license: apache-2.0
tags: [speculative-decoding, {settings.kind}]
---
# {_NAMES.get(heads.kind, heads.kind.capitalize())} heads for {model}

Draft heads for EntMTP: {trainer.description}, guessing within the
{heads.config.draft_vocab_size} tokens that are most frequent in the training text.

Trained on text that the model wrote itself: {len(dataset.texts)} answers, {dataset.answer_tokens} tokens, of which
{len(dataset.held_out)} answers were held out. {settings.epochs} epochs of about {trainer.positions} positions a step,
{trainer.optimizer.name} at {settings.learning_rate}; cross-entropy and divergence from the model's own distribution
(share {settings.distillation}). Prompts: {prompts}.

Accuracy on the held-out text, true tokens before each guess:

| depth | {" | ".join(f"top {top}" for top in TOP)} |
| --- | {" | ".join("---" for _ in TOP)} |
{rows}

Settings: `{settings.model_dump_json()}`
"""
    write_text(folder / "README.md", text)
