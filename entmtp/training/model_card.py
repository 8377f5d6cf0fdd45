"""Model card of trained heads: their training data, settings and held-out accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from entmtp.files import write_text
from entmtp.settings import TrainingSettings
from entmtp.training.dataset import Dataset
from entmtp.training.evaluate import TOP


def write_model_card(
    folder: Path, settings: TrainingSettings, dataset: Dataset, model: str, prompts: str, metrics: Mapping[str, float]
) -> None:
    """Writes ``README.md`` next to the weights.

    ``prompts`` describes the training prompts; ``metrics`` are the final held-out accuracies.
    """
    rows = "\n".join(
        f"| {head} | " + " | ".join(f"{metrics[f'head{head}_top{top}']:.3f}" for top in TOP) + " |"
        for head in range(1, settings.num_heads + 1)
    )
    text = f"""---
library_name: entmtp
license: apache-2.0
tags: [speculative-decoding, {settings.kind}]
---
# {settings.kind.capitalize()} heads for {model}

Draft heads for EntMTP: {settings.num_heads} heads, hidden layers {settings.inner_size} wide, guessing within the
{settings.draft_vocab_size} tokens that are most frequent in the training text.

Trained on text that the model wrote itself: {dataset.answers} answers, {len(dataset.tokens)} tokens, of which
{len(dataset.train)} positions were trained on and {len(dataset.held_out)} held out (whole prompts).
{settings.epochs} epochs of {settings.batch_size} positions a step, AdamW at {settings.learning_rate}; cross-entropy
and divergence from the model's own distribution (share {settings.distillation}). Prompts: {prompts}.

Accuracy on the held-out text, true tokens before each guess:

| head | {" | ".join(f"top {top}" for top in TOP)} |
| --- | {" | ".join("---" for _ in TOP)} |
{rows}

Settings: `{settings.model_dump_json()}`
"""
    write_text(folder / "README.md", text)
