"""A tiny random model on disk with everything that a benchmark of it needs: tokenizer, heads, data
files, banks and an empty database of MLflow."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from entmtp.calibration.command import calibrate_task
from entmtp.evaluation.report.mlflow import BENCHMARK_EXPERIMENT
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.persistent_paths import cache_folder
from entmtp.tracking.client import check_tracking, default_tracking_uri
from tests.helpers.tiny_models import STATELESS_KINDS, random_heads, tiny_model

SUITES = ("gsm8k", "sharegpt")
VOCAB = 257
"""Every byte, and the end of text."""


@dataclass(frozen=True)
class Saved:
    """The folder of a tiny project, and the options that name its parts."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def banks(self) -> Path:
        return self.folder / "banks"

    def heads(self, kind: str) -> Path:
        return self.folder / kind

    def data(self, suite: str) -> Path:
        return self.folder / f"{suite}.jsonl"

    def options(self, suites: Sequence[str] = SUITES) -> list[str]:
        """Command-line options for a benchmark of these suites."""
        texts = ["--model", str(self.model), "--banks", str(self.banks)]
        texts += [part for kind in STATELESS_KINDS for part in ("--heads", f"{kind}={self.heads(kind)}")]
        for suite in suites:
            texts += ["--suite", suite, "--data", f"{suite}={self.data(suite)}"]
        return texts


def calibrate_quietly(task: str, folder: Path, heads: Sequence[str], max_new_tokens: int) -> None:
    """Makes the banks of a task in ``folder``, which has the model and the task's data."""
    calibrate_task(
        task=task,
        output=folder / "banks",
        model=str(folder / "model"),
        heads=heads,
        data=folder / f"{task}.jsonl",
        overrides={"prompts": 4, "max_new_tokens": max_new_tokens},
        device="cpu",
        console=Console(quiet=True),
    )


def save_tiny_model(folder: Path, seed: int = 0, model_type: str = "llama", **changes: Any) -> Backbone:
    """A random model over bytes that repeats itself, so that heads that start at the model's state guess well."""
    shape: dict[str, Any] = {"vocab_size": VOCAB, "max_position_embeddings": 512, "tie_word_embeddings": True}
    model = tiny_model(model_type, seed, **(shape | changes))
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return build_backbone(model)


def save_tokenizer(folder: Path) -> None:
    """One token for every byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    spelling = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    spelling.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spelling.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=spelling, eos_token="<end>").save_pretrained(folder)


def save_heads(kind: str, backbone: Backbone, folder: Path) -> None:
    """Random heads of the tiny model."""
    random_heads(kind, backbone, vocab_size=VOCAB, draft_vocab_size=96).save_pretrained(folder)


def save_data(folder: Path) -> None:
    """Ten short prompts for each suite, in the hub's schema."""
    rows: dict[str, list[dict[str, Any]]] = {
        "gsm8k": [{"question": f"What is {n} + {n}?", "answer": f"#### {2 * n}"} for n in range(10)],
        "sharegpt": [{"conversations": [{"from": "human", "value": f"Tell me more about {n}."}]} for n in range(10)],
    }
    for suite, its_rows in rows.items():
        (folder / f"{suite}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in its_rows))


def save_project(folder: Path) -> Saved:
    """Saves a copy of all of it. It is made once for a run of tests."""
    made = cache_folder() / "tiny-project"
    made.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(made.with_suffix(".lock")):
        if not made.exists():
            unfinished = made.with_suffix(".unfinished")
            _make_project(unfinished)
            unfinished.rename(made)
    shutil.copytree(made, folder, dirs_exist_ok=True)
    return Saved(folder)


def _make_project(folder: Path) -> None:
    """Make a project whose banks come from a calibration, with an empty database for its runs."""
    saved = Saved(folder)
    backbone = save_tiny_model(saved.model)
    for kind in STATELESS_KINDS:
        save_heads(kind, backbone, saved.heads(kind))
    save_data(folder)
    for suite in SUITES:
        calibrate_quietly(suite, folder, [f"{kind}={saved.heads(kind)}" for kind in STATELESS_KINDS], 48)
    check_tracking(default_tracking_uri(folder), BENCHMARK_EXPERIMENT)
