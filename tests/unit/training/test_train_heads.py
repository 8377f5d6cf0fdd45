"""Training from prompts to heads, with the list of training prompts next to their weights."""

import io
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import MagicMock

import pytest
from rich.console import Console

from entmtp.errors import EntMTPError
from entmtp.heads.checkpoint import KINDS
from entmtp.heads.training_prompts import read_training_prompt_hashes
from entmtp.prompt_hash import prompt_hash
from entmtp.training.mlflow import TrainingRun, tracked_training
from entmtp.training.train_heads import Log, prepare_training, train_heads
from tests.helpers.saved_project import save_tiny_model

PROMPTS = [f"Tell me of {n} wolves." for n in range(12)]
NAMES = {"eagle3": "EAGLE-3", "hydra": "Hydra", "medusa": "Medusa"}
SMALL = {"epochs": 1, "batch_size": 64, "inner_size": 8, "draft_vocab_size": 64, "num_heads": 2, "held_out_share": 0.3}


@contextmanager
def untracked(params: Mapping[str, Any]) -> Iterator[Log]:
    yield lambda step, metrics: None


def never(*args: object, **kwargs: object) -> NoReturn:
    raise AssertionError("all of it was there already")


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
    assert re.search(r"held-out text, first guesses that are right by depth: \d+\.\d% \d+\.\d%\n", said)
    # The corpus keeps answers to prompts that are no longer given: a list without them would be too short.
    shutil.rmtree(tmp_path / "trained" / "checkpoints")
    listed, said = train(["Another one.", *PROMPTS[2:]])
    assert listed is None
    assert "no training_prompts.txt: the corpus has 2 answers" in said


def test_kinds_share_one_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_model(tmp_path / "model", num_hidden_layers=7)
    file, output = tmp_path / "prompts.jsonl", tmp_path / "trained"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    shared: dict[str, Any] = {
        "prompts": file,
        "output": output,
        "model": str(tmp_path / "model"),
        "device": "cpu",
        "console": Console(quiet=True),
    }

    prepare_training(kinds=sorted(KINDS), **shared)

    assert sorted(path.name for path in output.iterdir()) == ["corpus", "states", "states-2-3-4"]
    written = {path: path.read_bytes() for path in output.rglob("*.safetensors")}
    monkeypatch.setattr("entmtp.training.corpus.Engine", never)
    monkeypatch.setattr("entmtp.models.backbone.Backbone.read", never)
    for kind in sorted(KINDS):
        heads = train_heads(overrides=SMALL | {"kind": kind}, tracked=untracked, **shared)
        assert heads == output / kind
        assert json.loads((heads / "config.json").read_text())["model_type"] == f"entmtp_{kind}"
        assert (output / "checkpoints" / f"{kind}.pt").is_file()
        card = (heads / "README.md").read_text()
        assert f"{NAMES[kind]} heads for {tmp_path / 'model'}\n" in card
        assert "12 answers" in card
        assert "| depth | top 1 |" in card
        assert card.count("\n| ") == 2 + SMALL["num_heads"]
    assert {path: path.read_bytes() for path in written} == written


def test_a_kind_that_cannot_be_trained_is_named_before_any_text_is_written(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hi"}\n')
    for kinds, message in (
        (["hydra", "eagle3"], "kind: 'eagle3' heads read a low, a middle and a high layer, and a model of 2 layers is"),
        (["hydra", "eagle"], "kind: 'eagle' is not accepted; choose one of eagle3, hydra, medusa"),
    ):
        with pytest.raises(EntMTPError, match=message):
            prepare_training(
                kinds=kinds,
                prompts=tmp_path / "prompts.jsonl",
                output=tmp_path / "out",
                model=str(tmp_path / "model"),
                device="cpu",
                console=Console(quiet=True),
            )
    assert not (tmp_path / "out").exists()


def test_each_kind_is_tracked_in_a_run_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    def start(uri: str, experiment: str, params: Mapping[str, Any], run_id: str | None) -> TrainingRun:
        asked.append(run_id)
        return TrainingRun(MagicMock(), uri, run_id or f"run-{len(asked)}")

    monkeypatch.setattr("entmtp.training.mlflow.start_training_run", start)
    for kind in ("hydra", "eagle3", "hydra"):
        with tracked_training("http://host", tmp_path, {"kind": kind}):
            pass
    assert asked == [None, None, "run-1"], "an interrupted training goes on in its run"
