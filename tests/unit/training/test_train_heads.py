"""Training from prompts to heads, with the list of training prompts next to their weights."""

import io
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from entmtp.heads.training_prompts import read_training_prompt_hashes
from entmtp.prompt_hash import prompt_hash
from entmtp.training.train_heads import Log, train_heads
from tests.helpers.saved_project import save_tiny_model

PROMPTS = [f"Tell me of {n} wolves." for n in range(12)]
SMALL = {"epochs": 1, "batch_size": 64, "inner_size": 8, "draft_vocab_size": 64, "num_heads": 2, "held_out_share": 0.3}


@contextmanager
def untracked(params: Mapping[str, Any]) -> Iterator[Log]:
    yield lambda step, metrics: None


def test_heads_tell_which_prompts_they_were_trained_on(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")

    def train(prompts: list[str]) -> tuple[frozenset[str] | None, str]:
        file = tmp_path / "prompts.jsonl"
        file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
        console = Console(record=True, file=io.StringIO(), width=200)
        heads = train_heads(
            prompts=file,
            output=tmp_path / "trained",
            model=str(tmp_path / "model"),
            overrides=SMALL,
            tracked=untracked,
            device="cpu",
            console=console,
        )
        return read_training_prompt_hashes(heads), console.export_text()

    too_long = "x" * 2000  # is never answered, so nothing was trained on it
    listed, said = train([*PROMPTS, too_long])
    assert listed == frozenset(map(prompt_hash, PROMPTS))
    assert "training_prompts.txt: 12 prompts" in said
    # The corpus keeps answers to prompts that are no longer given: a list without them would be too short.
    shutil.rmtree(tmp_path / "trained" / "checkpoint")
    listed, said = train(["Another one.", *PROMPTS[2:]])
    assert listed is None
    assert "no training_prompts.txt: the corpus has 2 answers" in said
