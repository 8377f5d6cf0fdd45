"""DFlash heads in EntMTP's own format: saved, loaded, attached, and on the model's kernels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from entmtp.errors import EntMTPError
from entmtp.heads.checkpoint import load_heads
from entmtp.heads.dflash import DFlashHeads
from entmtp.heads.registry import registered_heads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.kernels import compiled
from entmtp.models.kernels.block_weight import BlockWeight
from tests.helpers.dflash_checkpoints import dflash
from tests.helpers.dflash_drafting import DFlashDrafting, imported_dflash
from tests.helpers.dflash_heads import dflash_config, dflash_heads, dspark_heads
from tests.helpers.eagle3_drafting import deep_model, seen_model
from tests.helpers.heads_with_caches import BUSHY
from tests.helpers.tiny_models import random_tokens

needs_compiler = pytest.mark.skipif(compiled.unsupported_reason() is not None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build_backbone(deep_model(), kernels="eager")


def drafted(heads: DFlashHeads, backbone: Backbone) -> tuple[torch.Tensor, torch.Tensor]:
    drafting = DFlashDrafting(heads, backbone.model, slots=1)
    drafting.prefill(0, random_tokens(9), root=5)
    found = drafting.draft([0], [BUSHY])
    return found.tokens, found.log_probs


@pytest.mark.parametrize("own", [False, True])
def test_saved_heads_draft_the_same_once_they_are_loaded(own: bool, backbone: Backbone, tmp_path: Path) -> None:
    heads = dspark_heads(backbone, own_output=own, own_embeddings=own)
    before = drafted(heads, backbone)
    heads.save_pretrained(tmp_path)
    loaded = load_heads(tmp_path, backbone)
    assert isinstance(loaded, DFlashHeads)
    assert loaded.config == heads.config
    tokens, log_probs = drafted(loaded, backbone)
    assert torch.equal(tokens, before[0])
    torch.testing.assert_close(log_probs, before[1], rtol=0, atol=1e-6)
    assert registered_heads()["entmtp_dflash"] is DFlashHeads


def test_the_draft_cache_has_each_layers_keys_and_values(backbone: Backbone) -> None:
    layout = dflash_heads(backbone, num_layers=3).cache_layout
    assert len(layout.layers) == 3
    assert layout.state_buffers == ()
    assert layout.spare_rows == 6


def test_layers_that_the_model_lacks_are_refused(backbone: Backbone) -> None:
    with pytest.raises(EntMTPError, match="feature_layers: 8 is not one of the model's 8 layers"):
        dflash_heads(backbone, feature_layers=[2, 4, 8])


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("feature_layers", [3, 2], r"feature_layers is \[3, 2\], not layer numbers in ascending order"),
        ("feature_layers", [], "feature_layers is empty; name the layers whose inputs the heads read"),
        ("block_size", 7, "num_heads is 5 but a block of 7 tokens guesses 6"),
        ("root_guesses", True, "num_heads is 5 but a block of 6 tokens guesses 6"),
        ("mask_token", 96, "mask_token is 96 but the model's tokens are 0 to 95"),
        ("confidence_reads_token", True, "confidence_reads_token is true but has_confidence is false or markov_rank"),
        ("num_layers", 0, "num_layers, num_key_value_heads or head_dim is 0"),
        ("num_key_value_heads", 3, "4 attention heads of 8 numbers can't share 3 key heads"),
        ("head_dim", 7, "4 attention heads of 7 numbers"),
        ("rope_parameters", {}, r"rope_parameters {} can't be used \(KeyError: 'rope_type'\)"),
        ("markov_rank", 4, "tensor weights.markov_output is missing or does not belong to dflash heads"),
        ("surprise", 1, "surprise is no field of entmtp_dflash"),
    ],
)
def test_a_configuration_that_contradicts_itself(
    field: str, value: object, named: str, backbone: Backbone, tmp_path: Path
) -> None:
    dflash_heads(backbone).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(EntMTPError, match=named):
        load_heads(tmp_path, backbone)


def test_a_block_of_the_root_alone_guesses_nothing(backbone: Backbone) -> None:
    with pytest.raises(EntMTPError, match="num_heads is 0 but a block of 1 tokens guesses 0"):
        dflash_config(backbone, num_heads=0, block_size=1)


def test_rounded_weights_draft_nearly_the_same(backbone: Backbone, tmp_path: Path) -> None:
    """In 16 bits, where the rotary frequencies must stay in 32."""
    heads = imported_dflash(dflash(seen_model(backbone)), backbone, tmp_path)
    model = deep_model().bfloat16()
    halved = load_heads(tmp_path / "ours", build_backbone(model, kernels="eager"))
    assert isinstance(halved, DFlashHeads)
    assert halved.dtype == torch.bfloat16
    assert halved.layers.rotary.inv_freq.dtype == torch.float32
    states = []
    for each, of in ((heads, backbone.model), (halved, model)):
        drafting = DFlashDrafting(each, of, slots=1)
        drafting.prefill(0, random_tokens(9), root=5)
        expansion = drafting.drafter.expand((0,), torch.tensor([5]))
        states.append(expansion._states.float())  # type: ignore[attr-defined]
    assert ((states[1] - states[0]).norm() / states[0].norm()).item() < 0.05


@needs_compiler
@pytest.mark.parametrize("own_output", [False, True])
def test_they_draft_from_blocks_alone_on_the_compiled_kernels(own_output: bool, backbone: Backbone) -> None:
    fused = build_backbone(deep_model(), kernels="fused")
    sizes = {"num_attention_heads": 4, "head_dim": 8, "intermediate_size": 64, "markov_rank": 32}
    exact = dspark_heads(backbone, own_output=own_output, **sizes)
    heads = dspark_heads(fused, own_output=own_output, **sizes)
    before = drafted(heads, fused)
    heads.draft_only().eval()
    assert all(torch.equal(found, expected) for found, expected in zip(drafted(heads, fused), before, strict=True))
    assert all(isinstance(weight, BlockWeight) for weight, _ in (heads._drafting_weights or {}).values())
    assert (before[1] - drafted(exact, backbone)[1]).abs().max() < 0.5
