"""EAGLE-3 heads in EntMTP's own format: saved, loaded, attached, and on the model's kernels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from entmtp.errors import EntMTPError
from entmtp.heads.checkpoint import load_heads
from entmtp.heads.eagle3 import Eagle3Heads
from entmtp.heads.eagle3.configuration import DEPTH, Eagle3Config, default_feature_layers
from entmtp.heads.registry import registered_heads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.kernels import compiled
from entmtp.models.kernels.block_weight import BlockWeight
from tests.helpers.eagle3_checkpoints import DRAFT_VOCAB, eagle3
from tests.helpers.eagle3_drafting import LAYERS, Drafting, deep_model, imported_eagle3, seen_model
from tests.helpers.heads_with_caches import BUSHY
from tests.helpers.tiny_models import VOCAB, random_tokens, tiny_model

needs_compiler = pytest.mark.skipif(compiled.unsupported_reason() is not None, reason="no C++ compiler")
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "vocab_size": VOCAB,
    "draft_vocab_size": DRAFT_VOCAB,
    "draft_hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build_backbone(deep_model(), kernels="eager")


def random_eagle3(**changes: Any) -> Eagle3Heads:
    """Unattached heads with random weights, whose output layer is the model's unless they have one of their own."""
    heads = Eagle3Heads(Eagle3Config(**(SIZES | changes)))
    generator = torch.Generator().manual_seed(3)
    for parameter in heads.parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.2 * drawn if parameter.ndim == 1 else drawn / parameter.shape[-1] ** 0.5
    heads.draft_vocab.copy_(torch.randperm(VOCAB, generator=generator)[:DRAFT_VOCAB])
    return heads


def drafted(heads: Eagle3Heads, backbone: Backbone) -> tuple[torch.Tensor, torch.Tensor]:
    drafting = Drafting(heads, backbone.model, slots=1)
    drafting.prefill(0, random_tokens(9), root=5)
    found = drafting.draft([0], [BUSHY])
    return found.tokens, found.log_probs


def test_saved_heads_draft_the_same_once_they_are_loaded(backbone: Backbone, tmp_path: Path) -> None:
    heads = random_eagle3(fc_norm=True, norms_heads=True, own_output=True, own_embeddings=True, attention_bias=True)
    before = drafted(heads.attach(backbone), backbone)
    heads.save_pretrained(tmp_path)
    loaded = load_heads(tmp_path, backbone)
    assert isinstance(loaded, Eagle3Heads)
    assert loaded.config == heads.config
    assert loaded.num_heads == DEPTH
    assert all(torch.equal(found, expected) for found, expected in zip(drafted(loaded, backbone), before, strict=True))
    assert registered_heads()["entmtp_eagle3"] is Eagle3Heads


def test_heads_that_name_no_layers_read_those_of_the_authors(backbone: Backbone) -> None:
    heads = random_eagle3()
    assert heads.feature_layers == ()
    assert heads.attach(backbone).feature_layers == (2, LAYERS // 2, LAYERS - 3)
    assert default_feature_layers(32) == [2, 16, 29]
    assert default_feature_layers(7) == [2, 3, 4]
    with pytest.raises(EntMTPError, match="a model of 6 layers is too shallow for the default ones"):
        default_feature_layers(6)
    with pytest.raises(EntMTPError, match="a model of 2 layers is too shallow"):
        random_eagle3().attach(build_backbone(tiny_model("llama"), kernels="eager"))


def test_layers_that_the_model_lacks_are_refused(backbone: Backbone) -> None:
    assert random_eagle3(feature_layers=[0, 7]).attach(backbone).feature_layers == (0, 7)
    with pytest.raises(EntMTPError, match="feature_layers: 8 is not one of the model's 8 layers"):
        random_eagle3(feature_layers=[2, 4, 8]).attach(backbone)


def test_the_draft_cache_has_rows_for_a_wide_tree_at_every_depth(backbone: Backbone) -> None:
    layout = random_eagle3(num_layers=2).attach(backbone).cache_layout
    assert len(layout.layers) == 2
    assert [(shape.heads, shape.head_dim) for shape in layout.state_buffers] == [(1, 32), (1, 1)]
    assert layout.spare_rows == 64 * (DEPTH - 1)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("feature_layers", [3, 2], r"feature_layers is \[3, 2\], not layer numbers in ascending order"),
        ("feature_layers", [2, 2, 3], "not layer numbers in ascending order"),
        ("feature_layers", [-1, 2, 3], "not layer numbers in ascending order"),
        ("feature_layers", ["2"], r"feature_layers is \['2'\]"),
        ("feature_layers", 2, "feature_layers is 2, not a list"),
        ("rms_norm_eps", "small", "rms_norm_eps is 'small', not a number with a decimal point"),
        ("num_key_value_heads", 3, "4 attention heads of 8 numbers can't share 3 key heads"),
        ("num_key_value_heads", 0, "num_layers, num_key_value_heads or head_dim is 0"),
        ("draft_hidden_size", 0, "draft_hidden_size is 0"),
        ("head_dim", 7, "4 attention heads of 7 numbers"),
        ("draft_hidden_size", 48, "own_embeddings and own_output must be true"),
        ("fc_norm", True, "norm_before_fc and fc_norm are both true"),
        ("rope_parameters", {}, r"rope_parameters {} can't be used \(KeyError: 'rope_type'\)"),
        ("rope_parameters", {"rope_type": "linear", "rope_theta": 1e4}, r"can't be used \(.*import the heads again"),
        ("rope_parameters", {"rope_type": "wild", "rope_theta": 1e4}, r"can't be used \(.*import the heads again"),
        ("surprise", 1, "surprise is no field of entmtp_eagle3"),
    ],
)
def test_a_configuration_that_contradicts_itself(
    field: str, value: object, named: str, backbone: Backbone, tmp_path: Path
) -> None:
    heads = random_eagle3(norm_before_fc=True)
    heads.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(EntMTPError, match=named):
        load_heads(tmp_path, backbone)


def test_rounded_weights_draft_nearly_the_same(backbone: Backbone, tmp_path: Path) -> None:
    """In 16 bits, where the rotary frequencies must stay in 32."""
    heads = imported_eagle3(eagle3(seen_model(backbone), "speculators"), backbone, tmp_path)
    model = deep_model().bfloat16()
    halved = load_heads(tmp_path / "ours", build_backbone(model, kernels="eager"))
    assert isinstance(halved, Eagle3Heads)
    assert halved.dtype == torch.bfloat16
    assert halved.layers.rotary.inv_freq.dtype == torch.float32
    prefilled = []
    for each, of in ((heads, backbone.model), (halved, model)):
        drafting = Drafting(each, of, slots=1)
        drafting.prefill(0, random_tokens(9), root=5)
        prefilled.append(drafting.drafter.states.float())
    assert ((prefilled[1] - prefilled[0]).norm() / prefilled[0].norm()).item() < 0.05


@needs_compiler
@pytest.mark.parametrize("own_output", [False, True])
def test_they_draft_from_blocks_alone_on_the_compiled_kernels(own_output: bool, backbone: Backbone) -> None:
    exact = random_eagle3(own_output=own_output).attach(backbone)
    fused = build_backbone(deep_model(), kernels="fused")
    heads = random_eagle3(own_output=own_output).attach(fused)
    before = drafted(heads, fused)
    heads.draft_only().eval()
    assert all(torch.equal(found, expected) for found, expected in zip(drafted(heads, fused), before, strict=True))
    assert all(isinstance(weight, BlockWeight) for weight, _ in (heads._drafting_weights or {}).values())
    assert all(each.ndim < 2 for each in heads.parameters() if not each.is_meta)
    assert (before[1] - drafted(exact, backbone)[1]).abs().max() < 0.5
