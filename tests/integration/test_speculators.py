"""Checkpoints that the package `speculators` wrote give the logits that it computes with them."""

import json
import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from entmtp.heads.dflash import DFlashHeads
from entmtp.heads.eagle3 import Eagle3Heads
from entmtp.models.build import build_backbone
from tests.helpers.eagle3_drafting import deep_model, imported_folder
from tests.helpers.paths import ROOT
from tests.helpers.tiny_models import VOCAB

pytestmark = pytest.mark.slow

PACKAGES = "speculators==0.9.0", "hs-connectors", "loguru"
"""The package, and what it imports for these heads. Its other dependencies are this environment's or not needed."""
BASE = {"model_type": "llama", "draft_vocab_size": 64}
VARIANTS: dict[str, dict[str, object]] = {
    "Llama": {},
    "Qwen3": {"model_type": "qwen3"},
    "normalized residual": {"norm_before_residual": True, "eagle_aux_hidden_state_layer_ids": [1, 4, 6]},
    "norm of all features": {"norm_before_fc": True},
    "norm of each feature": {"fc_norm": True, "norm_output": True},
    "five features": {"eagle_aux_hidden_state_layer_ids": [1, 2, 4, 5, 7], "norm_output": True},
    "two layers": {"model_type": "qwen3", "num_hidden_layers": 2, "norm_before_residual": True},
    "whole vocabulary": {"draft_vocab_size": VOCAB},
}
BLOCKS: dict[str, dict[str, object]] = {
    "DFlash": {"kind": "dflash", "aux_hidden_state_layer_ids": [2, 4, 5]},
    "DFlash, whole vocabulary": {"kind": "dflash", "draft_vocab_size": VOCAB, "num_hidden_layers": 3},
    "DFlash, from the root on": {"kind": "dflash", "sample_from_anchor": True},
    "DSpark": {"kind": "dspark", "markov_rank": 6},
    "DSpark, whole vocabulary": {"kind": "dspark", "markov_rank": 6, "draft_vocab_size": VOCAB},
    "DSpark, from its masks": {"kind": "dspark", "markov_rank": 6, "sample_from_anchor": False},
    "DSpark, without its bias": {"kind": "dspark", "markov_rank": 0, "confidence_head_with_markov": False},
}


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python with the package, in an environment of its own that sees the packages of this one."""
    folder = tmp_path_factory.mktemp("speculators")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    script = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([python, "-c", script], check=True, capture_output=True, text=True).stdout.strip())
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib"))
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES], check=True)
    return python


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_logits_are_those_of_the_package(variant: str, interpreter: Path, tmp_path: Path) -> None:
    script, fields = ROOT / "tests" / "helpers" / "speculators_checkpoint.py", json.dumps(BASE | VARIANTS[variant])
    # -P: the script's folder has modules with the names of packages.
    subprocess.run([interpreter, "-P", script, tmp_path / "published", fields], check=True, capture_output=True)
    expected = load_file(tmp_path / "published" / "expected.safetensors")
    (tmp_path / "published" / "expected.safetensors").unlink()
    heads = imported_folder(tmp_path / "published", build_backbone(deep_model(), "eager"), tmp_path / "ours")
    assert isinstance(heads, Eagle3Heads)
    tokens, logits = expected["tokens"], expected["logits"]
    features = torch.nn.functional.pad(expected["features"], (0, 0, 0, 1))  # nothing follows the last token
    text = heads.traced_text(features, tokens, begin=1)
    steps, rows = len(logits), len(tokens) - 1
    chains = torch.nn.functional.pad(tokens[1:], (0, heads.num_heads)).unfold(0, heads.num_heads, 1)[:rows]
    found = heads.draft_logits(text.teacher_forced(torch.arange(rows), chains))
    for step in range(steps):
        known = slice(rows - step)  # the package has no tokens for the last rows' chains
        torch.testing.assert_close(found[known, step], logits[step, known], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", BLOCKS)
@torch.inference_mode()
def test_logits_of_blocks_are_those_of_the_package(variant: str, interpreter: Path, tmp_path: Path) -> None:
    defaults = {"draft_vocab_size": 64, "block_size": 6, "aux_hidden_state_layer_ids": [1, 4]}
    script, fields = ROOT / "tests" / "helpers" / "speculators_blocks.py", json.dumps(defaults | BLOCKS[variant])
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}  # the model that the checkpoint names does not exist
    published = tmp_path / "published"
    subprocess.run([interpreter, "-P", script, published, fields], check=True, capture_output=True, env=offline)
    expected = load_file(published / "expected.safetensors")
    (published / "expected.safetensors").unlink()
    model = deep_model()
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    embeddings.weight.data = expected["embeddings"]
    if len(expected["output"]) == VOCAB:
        model.get_output_embeddings().weight.data = expected["output"]
    heads = imported_folder(published, build_backbone(model, "eager"), tmp_path / "ours")
    assert isinstance(heads, DFlashHeads)
    tokens, anchors = expected["tokens"], expected["anchors"]
    after_some = anchors > 0
    roots = anchors[after_some]
    text = heads.traced_text(expected["features"], tokens, begin=1)
    chains = tokens[roots[:, None] + torch.arange(heads.num_heads)]
    found = heads.draft_logits(text.teacher_forced(roots - 1, chains))
    theirs = expected["logits"][after_some][:, -heads.num_heads :]
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-4)
