"""The importer on good EAGLE-3 checkpoints: what it reads of them, and what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from typer.testing import CliRunner

from entmtp.cli import app
from entmtp.heads.checkpoint import load_heads
from entmtp.heads.eagle3 import Eagle3Heads
from entmtp.models.build import build_backbone
from tests.helpers.eagle3_checkpoints import Layout, eagle3
from tests.helpers.eagle3_drafting import deep_model
from tests.helpers.importer_messages import imported, refused
from tests.helpers.published_checkpoints import CONFIG, Model, save_tensors
from tests.helpers.saved_project import save_tokenizer
from tests.helpers.tiny_models import VOCAB

HIDDEN = 32
MODEL = Model(torch.randn(VOCAB, HIDDEN), torch.randn(VOCAB, HIDDEN))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model = deep_model()
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.mark.parametrize(
    ("layout", "options", "said"),
    [
        ("SafeAILab", {}, "EAGLE-3 heads of 1 layer on the inputs of the default layers, an output layer for 40"),
        ("speculators", {"layers": 2}, "EAGLE-3 heads of 2 layers on the inputs of layers 2, 4, 5, an output"),
        ("SGLang", {"features": (1, 3, 7)}, "on the inputs of layers 1, 3, 7, an output layer for 40 tokens"),
        ("DeepSpec", {"norms_heads": True, "draft_vocab": None, "own_output": False},
         "the model's output layer for 96 tokens, trees of depth 8, hidden size 32, vocabulary 96, for any model of"),
    ],
)  # fmt: skip
def test_the_summary_says_what_was_read(layout: Layout, options: dict[str, Any], said: str, tmp_path: Path) -> None:
    messages = imported(eagle3(MODEL, layout, **options).save(tmp_path / "published"), tmp_path / "ours")
    assert "EAGLE-3's, as of" in messages[0]
    assert said in messages[-1]


def test_layers_that_go_unnamed_are_resolved_as_early_as_the_model_is_known(model_folder: Path, tmp_path: Path) -> None:
    folder = eagle3(MODEL).save(tmp_path / "published")
    messages = imported(folder, tmp_path / "unbound")
    assert "names no layers whose states the heads read" in messages[1]
    assert json.loads((tmp_path / "unbound" / CONFIG).read_text())["feature_layers"] == []
    messages = imported(folder, tmp_path / "bound", model_folder)
    assert len(messages) == 2
    assert json.loads((tmp_path / "bound" / CONFIG).read_text())["feature_layers"] == [2, 4, 5]
    backbone = build_backbone(deep_model(), kernels="eager")
    for name in ("unbound", "bound"):
        assert load_heads(tmp_path / name, backbone).feature_layers == (2, 4, 5)
    named = eagle3(MODEL).configured(num_target_layers=12).save(tmp_path / "named")
    assert len(imported(named, tmp_path / "by its configuration")) == 2
    assert json.loads((tmp_path / "by its configuration" / CONFIG).read_text())["feature_layers"] == [2, 6, 9]
    refused(named, "num_target_layers is 12 but the model's layers are 8", model_folder)


def test_another_models_heads_are_refused(model_folder: Path, tmp_path: Path) -> None:
    wide = Model(torch.randn(VOCAB, 40), torch.randn(VOCAB, 40))
    refused(eagle3(wide).save(tmp_path / "wide"), "hidden_size is 40 but the model's is 32", model_folder)
    small = Model(torch.randn(95, HIDDEN), torch.randn(95, HIDDEN))
    refused(eagle3(small).save(tmp_path / "small"), "vocab_size is 95 but the model's is 96", model_folder)
    deep_ids = eagle3(MODEL, "speculators", features=(2, 4, 8)).save(tmp_path / "deep")
    refused(deep_ids, "the heads read the input of layer 8 but the model's layers are 0 to 7", model_folder)


def test_heads_of_speculators_that_do_not_say_where_they_normalise_get_a_hint(tmp_path: Path) -> None:
    folder = eagle3(MODEL, "speculators").configured(norm_before_residual=None).save(tmp_path / "published")
    assert "no norm_before_residual, so it is taken as false" in imported(folder, tmp_path / "ours")[1]
    clear = eagle3(MODEL, "speculators", norm_before_residual=True).save(tmp_path / "clear")
    assert len(imported(clear, tmp_path / "theirs")) == 2


def test_large_heads_come_in_parts(tmp_path: Path) -> None:
    checkpoint = replace(eagle3(MODEL, "speculators"), file="model-00001-of-00002.safetensors")
    names = sorted(checkpoint.tensors)
    halves = [{name: checkpoint.tensors[name] for name in names[start::2]} for start in (0, 1)]
    folder = replace(checkpoint, tensors=halves[0]).save(tmp_path / "published")
    save_tensors(folder / "model-00002-of-00002.safetensors", halves[1])
    files = {name: f"model-0000{1 + part}-of-00002.safetensors" for part in (0, 1) for name in halves[part]}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    imported(folder, tmp_path / "ours")
    whole = eagle3(MODEL, "speculators").save(tmp_path / "whole")
    imported(whole, tmp_path / "theirs")
    assert (tmp_path / "ours" / "model.safetensors").read_bytes() == (
        tmp_path / "theirs" / "model.safetensors"
    ).read_bytes()


def test_every_field_that_transformers_adds_by_itself_is_known(tmp_path: Path) -> None:
    """A configuration of transformers' own, as converters save it, has many fields that change nothing."""
    checkpoint = eagle3(MODEL, "DeepSpec", norms_heads=True)
    for model_type in ("llama", "qwen3", "qwen2"):
        config = AutoConfig.for_model(model_type).to_dict()
        sizes = {name: checkpoint.config[name] for name in checkpoint.config if name != "architectures"}
        own = {"model_type": "qwen3", "layer_types": ["full_attention"], "use_sliding_window": False}
        full = checkpoint.configured(**(config | sizes | own))
        imported(full.save(tmp_path / model_type), tmp_path / f"{model_type} ours")


def test_a_copy_of_the_rotary_table_is_not_imported(tmp_path: Path) -> None:
    checkpoint = eagle3(MODEL).changed(midlayer__self_attn__rotary_emb__inv_freq=torch.ones(4))
    imported(checkpoint.save(tmp_path / "published"), tmp_path / "ours")
    heads = load_heads(tmp_path / "ours", build_backbone(deep_model(), kernels="eager"))
    assert isinstance(heads, Eagle3Heads)
    assert heads.config.rope_parameters == {"rope_type": "default", "rope_theta": 10_000.0}


def test_yarn_positions_are_transformers(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1000.0}
    imported(eagle3(MODEL, "SGLang", rope_parameters=yarn).save(tmp_path / "published"), tmp_path / "ours")
    heads = load_heads(tmp_path / "ours", build_backbone(deep_model(), kernels="eager"))
    assert isinstance(heads, Eagle3Heads)
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = AutoConfig.for_model("llama", head_dim=8, max_position_embeddings=64, rope_parameters=yarn)
    frequencies, scaling = ROPE_INIT_FUNCTIONS["yarn"](config)
    assert torch.equal(heads.layers.rotary.inv_freq, frequencies)
    assert heads.layers.rotary.attention_scaling == scaling != 1


def test_the_command_says_what_it_read_or_one_line_why_not(tmp_path: Path) -> None:
    folder = eagle3(MODEL, "SGLang").save(tmp_path / "published")
    done = CliRunner().invoke(app, ["import-heads", str(folder), f"--output={tmp_path / 'ours'}"])
    assert done.exit_code == 0
    assert "EAGLE-3 heads of 1 layer on the inputs of layers 2, 4, 5" in done.output
    broken = eagle3(MODEL).configured(surprise=1).save(tmp_path / "broken")
    failed = CliRunner().invoke(app, ["import-heads", str(broken), f"--output={tmp_path / 'theirs'}"])
    assert failed.exit_code == 2
    assert "'surprise' is 1, and this importer does not know the field" in " ".join(failed.output.split())
