"""The importer on good DFlash and DSpark checkpoints: what it reads of them, and what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from typer.testing import CliRunner

from entmtp.cli import app
from entmtp.heads.checkpoint import load_heads
from entmtp.models.build import build_backbone
from tests.helpers.dflash_checkpoints import MASK, Layout, dflash
from tests.helpers.eagle3_drafting import deep_model
from tests.helpers.importer_messages import imported, refused
from tests.helpers.published_checkpoints import CONFIG, Model
from tests.helpers.saved_project import save_tokenizer
from tests.helpers.tiny_models import VOCAB

HIDDEN = 32
MODEL = Model(torch.randn(VOCAB, HIDDEN), torch.randn(VOCAB, HIDDEN))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    deep_model().save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def configuration(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    return found


@pytest.mark.parametrize(
    ("layout", "options", "said"),
    [
        ("z-lab", {}, "DFlash heads of 2 layers on the inputs of layers 2, 4, 5, the model's output layer for 96"
         " tokens, blocks of 6 tokens, trees of depth 5, hidden size 32, vocabulary 96, for any model of these sizes"),
        ("z-lab", {"block": 17}, "blocks of 17 tokens, trees of depth 16"),
        ("DeepSpec", {"layers": 1, "own_output": True}, "DFlash heads of 1 layer on the inputs of layers 2, 4, 5, an"
         " output layer for 96 tokens, blocks of 6 tokens, trees of depth 6"),
        ("DeepSpec", {"rank": 6, "confidence": "token"}, "DSpark heads of 2 layers"),
        ("speculators", {"draft_vocab": 40}, "an output layer for 40 tokens, blocks of 6 tokens, trees of depth 5"),
        ("speculators", {"rank": 6}, "DSpark heads of 2 layers on the inputs of layers 2, 4, 5, the model's output"
         " layer for 96 tokens, blocks of 6 tokens, trees of depth 6"),
        ("speculators", {"rank": 6, "anchor": False}, "blocks of 6 tokens, trees of depth 5"),
    ],
)  # fmt: skip
def test_the_summary_says_what_was_read(layout: Layout, options: dict[str, Any], said: str, tmp_path: Path) -> None:
    messages = imported(dflash(MODEL, layout, **options).save(tmp_path / "published"), tmp_path / "ours")
    assert "DFlash's and DSpark's, as of z-lab, DeepSpec and speculators" in messages[0]
    assert said in messages[-1]


def test_layers_are_counted_by_what_enters_them_except_by_speculators(tmp_path: Path) -> None:
    for layout in ("z-lab", "DeepSpec", "speculators"):
        checkpoint = dflash(MODEL, layout, features=(3, 5))
        ids = {
            "z-lab": lambda config: config["dflash_config"]["target_layer_ids"],
            "DeepSpec": lambda config: config["target_layer_ids"],
            "speculators": lambda config: config["aux_hidden_state_layer_ids"],
        }[layout](checkpoint.config)
        assert ids == ([3, 5] if layout == "speculators" else [2, 4])
        imported(checkpoint.save(tmp_path / layout), tmp_path / f"{layout} imported")
        assert configuration(tmp_path / f"{layout} imported")["feature_layers"] == [3, 5]


def test_fields_of_a_block_are_in_either_of_two_positions(tmp_path: Path) -> None:
    checkpoint = dflash(MODEL)
    nested = checkpoint.config["dflash_config"]
    below = checkpoint.configured(block_size=None, dflash_config=nested | {"block_size": 6})
    above = checkpoint.configured(dflash_config=None, **nested)
    for name, each in {"below": below, "above": above}.items():
        imported(each.save(tmp_path / name), tmp_path / f"{name} imported")
        found = configuration(tmp_path / f"{name} imported")
        assert (found["block_size"], found["mask_token"], found["feature_layers"]) == (6, MASK, [2, 4, 5])


def test_which_states_of_a_block_guess_goes_without_saying_in_dflash_alone(tmp_path: Path) -> None:
    silent = dflash(MODEL, "speculators").configured(sample_from_anchor=None)
    imported(silent.save(tmp_path / "published"), tmp_path / "imported")
    found = configuration(tmp_path / "imported")
    assert (found["root_guesses"], found["num_heads"]) == (False, 5)
    unclear = dflash(MODEL, "speculators", rank=6).configured(sample_from_anchor=None)
    refused(unclear.save(tmp_path / "unclear"), "sample_from_anchor is missing; it tells whether the root's state")


def test_another_models_heads_are_refused(model_folder: Path, tmp_path: Path) -> None:
    wide = Model(torch.randn(VOCAB, 40), torch.randn(VOCAB, 40))
    refused(dflash(wide).save(tmp_path / "wide"), "hidden_size is 40 but the model's is 32", model_folder)
    small = Model(torch.randn(95, HIDDEN), torch.randn(95, HIDDEN))
    refused(dflash(small).save(tmp_path / "small"), "vocab_size is 95 but the model's is 96", model_folder)
    deep = dflash(MODEL, "speculators", features=(2, 4, 8)).save(tmp_path / "deep")
    refused(deep, "the heads read the input of layer 8 but the model's layers are 0 to 7", model_folder)
    other = dflash(MODEL).configured(num_target_layers=12).save(tmp_path / "other")
    refused(other, "num_target_layers is 12 but the model's layers are 8", model_folder)


def test_heads_are_bound_to_the_model_that_is_named(model_folder: Path, tmp_path: Path) -> None:
    imported(dflash(MODEL).save(tmp_path / "published"), tmp_path / "ours", model_folder)
    heads = load_heads(tmp_path / "ours", build_backbone(deep_model(), kernels="eager"))
    assert heads.config.model_fingerprint
    assert heads.feature_layers == (2, 4, 5)


@pytest.mark.parametrize("layout", ["z-lab", "DeepSpec"])
def test_every_field_that_transformers_adds_by_itself_is_known(layout: Layout, tmp_path: Path) -> None:
    """A configuration of transformers' own, as it is saved, has many fields that change nothing."""
    checkpoint = dflash(MODEL, layout)
    written = AutoConfig.for_model("qwen3").to_dict()
    del written["rope_parameters"]  # a newer name for what z-lab's has in rope_theta
    config = {name: value for name, value in (written | checkpoint.config).items() if value is not None}
    imported(checkpoint.configured(**config).save(tmp_path / "published"), tmp_path / "ours")


def test_the_command_says_what_it_read_or_one_line_why_not(tmp_path: Path) -> None:
    folder = dflash(MODEL).save(tmp_path / "published")
    done = CliRunner().invoke(app, ["import-heads", str(folder), f"--output={tmp_path / 'ours'}"])
    assert done.exit_code == 0
    assert "DFlash heads of 2 layers on the inputs of layers 2, 4, 5" in done.output
    broken = dflash(MODEL).configured(surprise=1).save(tmp_path / "broken")
    failed = CliRunner().invoke(app, ["import-heads", str(broken), f"--output={tmp_path / 'theirs'}"])
    assert failed.exit_code == 2
    assert "'surprise' is 1, and this importer does not know the field" in " ".join(failed.output.split())
