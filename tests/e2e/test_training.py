"""EAGLE-3 heads from prompts to text: trained on the command line, loaded, and drafting through the engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase
from typer.testing import CliRunner

from entmtp.cli import app
from entmtp.decoding.engine import Engine
from entmtp.decoding.request import Request
from entmtp.heads.checkpoint import load_heads
from entmtp.heads.eagle3 import Eagle3Heads
from entmtp.models.build import build_backbone
from entmtp.models.loading.load import encode_chat, load_model
from entmtp.policies.static import StaticPolicy
from entmtp.settings import EngineSettings, SamplingParams, TrainingSettings
from entmtp.training.corpus import prompt_id
from tests.helpers.saved_project import save_data, save_tiny_model
from tests.helpers.tiny_models import TREES, greedy

NEW_TOKENS = 24
SLOTS = 3


def run(*arguments: object) -> str:
    """Output of a command, which must succeed."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def enough_prompts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Few prompts, of which one is held out."""
    share = TrainingSettings().held_out_share
    texts = [f"Tell me of {number} wolves." for number in range(200)]
    held_out = [text for text in texts if int(prompt_id(encode_chat(tokenizer, text))[-8:], 16) / 0xFFFFFFFF < share]
    return [*[text for text in texts if text not in held_out][:11], held_out[0]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and EAGLE-3 heads that were trained for it."""
    folder = tmp_path_factory.mktemp("eagle3")
    save_tiny_model(folder / "model", model_type="qwen3", num_hidden_layers=7)
    _, tokenizer = load_model(str(folder / "model"))
    lines = [json.dumps({"prompt": prompt}) for prompt in enough_prompts(tokenizer)]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    options = ["--model", folder / "model", "--prompts", folder / "prompts.jsonl", "--output", folder / "trained"]
    said = run("train", "--kind", "eagle3", "--epochs", 2, *options)
    assert "text: 12/12 prompts answered" in said
    assert "states: 1/1 parts of the text read" in said
    assert "heads: " in said
    again = run("train", "--kind", "eagle3", "--epochs", 2, *options)
    assert "prompts answered" not in again
    return folder


@pytest.mark.parametrize("tree", sorted(TREES))
def test_trained_heads_write_the_models_own_text(folder: Path, tree: str) -> None:
    model, tokenizer = load_model(str(folder / "model"))
    backbone = build_backbone(model)
    heads = load_heads(folder / "trained" / "eagle3", backbone)
    assert isinstance(heads, Eagle3Heads)
    assert heads.config.intermediate_size == 64
    prompts = [encode_chat(tokenizer, f"What is {number} + {number}?") for number in range(2 * SLOTS)]
    engine = Engine(backbone, heads, StaticPolicy(TREES[tree], 8), EngineSettings(slots=SLOTS, context=160))
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS)
    running = [engine.submit(Request(str(number), ids, params)) for number, ids in enumerate(prompts)]
    while not all(each.finish_reason for each in running):
        engine.step()
    for ids, done in zip(prompts, running, strict=True):
        assert done.tokens == greedy(model, ids, NEW_TOKENS)
    if tree == "bushy":
        assert max(done.tau for done in running) > 1, "nothing was accepted: the case shows nothing"


def test_trained_heads_are_calibrated(folder: Path) -> None:
    save_data(folder)
    options = ["--model", folder / "model", "--data", folder / "gsm8k.jsonl", "--output", folder / "banks"]
    run("calibrate", "--task", "gsm8k", "--heads", f"eagle3={folder / 'trained' / 'eagle3'}", *options,
        "--prompts", 4, "--max-new-tokens", 48)  # fmt: skip
    assert json.loads((folder / "banks" / "gsm8k-eagle3.json").read_text())["provenance"]["heads_kind"] == "eagle3"
