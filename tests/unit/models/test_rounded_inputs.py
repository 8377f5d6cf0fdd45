"""A GGUF model on kernels that round their inputs: near its own logits, and one text with any tree."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from entmtp.errors import EntMTPError
from entmtp.models.build import build_backbone
from entmtp.models.gguf.configuration import ARCHITECTURES
from entmtp.models.kernels import compiled
from entmtp.models.kernels.choices import CHOICES, draft_layer_maker, supported_kernels
from entmtp.models.kernels.fused_linear import DraftLinear, FusedLinear, Int8Linear, Int16Linear
from entmtp.models.loading.load import load_model
from entmtp.policies.static import StaticPolicy
from entmtp.settings import Kernels
from entmtp.trees.topology import Topology
from tests.helpers.cpu_instructions import needs_vnni
from tests.helpers.gguf_files import write_model
from tests.helpers.small_cases import single_engine
from tests.helpers.tiny_models import random_heads, tiny_model

pytestmark = pytest.mark.skipif(compiled.unsupported_reason() is not None, reason="no C++ compiler")
PROMPT = [5, 17, 80, 33, 8, 61, 2, 90]
WINDOW = 8
every_rounding = pytest.mark.parametrize("kernels", ["fused-int8", pytest.param("fused-int16", marks=needs_vnni)])
TREE = Topology.of([(0,), (1,), (2,), (0, 0), (0, 1), (1, 0)])


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("format", ["Q4_0", "Q4_1", "Q6_K", "Q8_0"])
@pytest.mark.parametrize(
    ("rounding", "bits", "allowed"),
    [("fused-int8", 8, 0.05), pytest.param("fused-int16", 16, 2e-4, marks=needs_vnni)],
)
def test_logits_are_near_the_models_own(
    architecture: str, format: str, rounding: Kernels, bits: int, allowed: float, tmp_path: Path
) -> None:
    model, _ = load_model(str(write_model(tmp_path / "model.gguf", architecture, format)))
    logits = []
    choices: list[Kernels] = ["fused", rounding]
    for kernels in choices:
        backbone = build_backbone(model, kernels)
        assert backbone.kernels == kernels
        cache = backbone.new_cache(slots=1, capacity=64)
        logits.append(backbone.logits(backbone.prefill(PROMPT, 0, cache).hidden))
    own, rounded = logits
    assert allowed / 500 < ((rounded - own).norm() / own.norm()).item() < allowed
    assert f"with inputs rounded to int{bits}" in backbone.kernels_description


@pytest.mark.parametrize("format", ["Q4_1", "Q5_K", "Q8_0"])
@every_rounding
def test_a_tree_writes_the_text_of_plain_decoding(format: str, kernels: Kernels, tmp_path: Path) -> None:
    model, _ = load_model(str(write_model(tmp_path / "model.gguf", "llama", format)))
    backbone = build_backbone(model, kernels)
    heads = random_heads("hydra", backbone)
    heads.attach(backbone)
    plain = single_engine(backbone, None, StaticPolicy(Topology.root_only(), WINDOW)).generate(PROMPT, 60)
    drafted = single_engine(backbone, heads, StaticPolicy(TREE, WINDOW)).generate(PROMPT, 60)
    assert drafted.tokens == plain.tokens
    assert drafted.drafted > 0


@every_rounding
def test_nothing_takes_them_by_itself(kernels: Kernels) -> None:
    assert kernels not in supported_kernels("auto", torch.float32, torch.device("cpu"))
    assert supported_kernels(kernels, torch.float32, torch.device("cpu")) == [kernels]


def test_drafts_are_made_by_the_layers_that_the_lossless_kernels_draft_with() -> None:
    for kind in FusedLinear, Int16Linear, Int8Linear:
        assert draft_layer_maker(kind) is DraftLinear


def test_weights_that_are_not_in_blocks_are_refused() -> None:
    with pytest.raises(EntMTPError) as refusal:
        build_backbone(tiny_model("llama"), "fused-int8")
    assert str(refusal.value) == (
        "kernels: 'fused-int8' needs weights in GGUF's blocks; give a GGUF file, or --weights q8, or use 'auto'"
    )


def test_kernels_that_round_too_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = load_model(str(write_model(tmp_path / "model.gguf", "llama", "Q4_1")))
    monkeypatch.setitem(CHOICES, "fused-int8", replace(CHOICES["fused-int8"], tolerance=1e-5))
    with pytest.raises(EntMTPError, match=r"the logits differ from the model's own by .* of the largest; use 'eager'"):
        build_backbone(model, "fused-int8")


def test_16_bits_need_instructions_for_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_FLAGS", [*compiled._FLAGS, "-march=x86-64", "-Wno-psabi"])
    monkeypatch.setattr(compiled, "_loaded", {})
    with pytest.raises(EntMTPError) as refusal:
        supported_kernels("fused-int16", torch.float32, torch.device("cpu"))
    assert str(refusal.value) == "kernels: 'fused-int16' needs a CPU with VNNI instructions; use 'auto'"
