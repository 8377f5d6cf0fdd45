"""Heads that only draft have their weights once: in the blocks that the draft layers read."""

from pathlib import Path

import pytest
import torch
from torch import nn

from entmtp.heads.base import DraftHeads
from entmtp.heads.checkpoint import load_heads
from entmtp.heads.hydra import HydraConfig, HydraHeads
from entmtp.heads.medusa import MedusaConfig, MedusaHeads
from entmtp.heads.original_hydra import OriginalHydraConfig, OriginalHydraHeads
from entmtp.heads.original_medusa import OriginalMedusaConfig, OriginalMedusaHeads
from entmtp.heads.stateless import StatelessHeads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.kernels import compiled
from entmtp.models.kernels.block_weight import BlockWeight
from entmtp.trees.batch import TreeBatch
from tests.helpers.tiny_models import TREES, VOCAB, random_tokens, tiny_model

needs_compiler = pytest.mark.skipif(compiled.unsupported_reason() is not None, reason="no C++ compiler")
MAPPINGS = Path("/proc/self/maps")
TRAINED = {"inner_size": 64}
OWN_OUTPUTS = {"num_layers": 2, "outputs": 4, "output_bias": True}
KINDS = {
    "medusa": (MedusaHeads, MedusaConfig, TRAINED),
    "hydra": (HydraHeads, HydraConfig, TRAINED),
    "original medusa": (OriginalMedusaHeads, OriginalMedusaConfig, OWN_OUTPUTS),
    "original hydra": (OriginalHydraHeads, OriginalHydraConfig, {"num_layers": 2}),
}


@pytest.fixture(params=sorted(KINDS))
def heads(request: pytest.FixtureRequest) -> StatelessHeads:
    """Heads whose weights have rows of whole blocks, not yet attached."""
    heads_class, config_class, sizes = KINDS[request.param]
    shape = {"hidden_size": 32, "vocab_size": VOCAB, "num_heads": 4, "draft_vocab_size": 40}
    made: StatelessHeads = heads_class(config_class(**shape, **sizes))
    generator = torch.Generator().manual_seed(3)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
    made.draft_vocab.copy_(torch.randperm(VOCAB, generator=generator)[:40])
    return made


def drafted(heads: StatelessHeads) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    trees = TreeBatch.of([TREES["bushy"], TREES["chain"]])
    found = heads.propose(hidden, torch.tensor(random_tokens(2)), trees)
    return found.tokens, found.log_probs


def in_memory(heads: DraftHeads) -> list[torch.Tensor]:
    """Parameters that take memory."""
    return [each for each in heads.parameters() if not each.is_meta]


@needs_compiler
def test_they_draft_the_same_from_blocks_alone(heads: StatelessHeads, backbone: Backbone) -> None:
    heads.attach(backbone)
    before, dtype, numbers = drafted(heads), heads.dtype, [each.numel() for each in heads.parameters()]
    assert heads.draft_only().draft_only() is heads
    heads.eval()  # without the layers of before
    for found, expected in zip(drafted(heads), before, strict=True):
        assert torch.equal(found, expected)
    assert all(each.ndim < 2 or "bias" in name for name, each in heads.named_parameters() if not each.is_meta)
    assert all(isinstance(weight, BlockWeight) for weight, _ in (heads._drafting_weights or {}).values())
    assert isinstance(heads.output_weight, BlockWeight) == ("output" in heads.linear_weights())
    assert (heads.dtype, [each.numel() for each in heads.parameters()]) == (dtype, numbers)


@needs_compiler
def test_they_run_outside_of_inference_mode_too(heads: StatelessHeads, backbone: Backbone) -> None:
    heads.attach(backbone).draft_only()
    hidden, tokens = torch.randn(3, 32), torch.tensor([random_tokens(4, seed) for seed in range(3)])
    with torch.inference_mode():
        rounded = heads.teacher_forced(hidden, tokens)
    plain = heads.teacher_forced(hidden, tokens)
    assert ((rounded - plain).norm() / plain.norm()).item() < 0.05


@needs_compiler
def test_they_are_neither_trained_nor_saved(heads: StatelessHeads, backbone: Backbone, tmp_path: Path) -> None:
    heads.attach(backbone).draft_only()
    with pytest.raises(ValueError, match="can't be trained"):
        heads.train()
    with pytest.raises(ValueError, match="can't be saved"):
        heads.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@needs_compiler
def test_a_weight_without_whole_blocks_stays(backbone: Backbone) -> None:
    config = MedusaConfig(hidden_size=32, vocab_size=VOCAB, num_heads=4, draft_vocab_size=40, inner_size=24)
    heads = MedusaHeads(config).attach(backbone).draft_only()
    assert heads.up.weight.is_meta
    assert not heads.down.is_meta
    drafted(heads)


def test_other_kernels_need_the_parameters(heads: StatelessHeads, tmp_path: Path) -> None:
    heads.attach(build_backbone(tiny_model("llama"), kernels="eager")).draft_only()
    assert not heads.only_drafts
    assert in_memory(heads) == list(heads.parameters())
    heads.train().save_pretrained(tmp_path)


@needs_compiler
@pytest.mark.skipif(not MAPPINGS.exists(), reason="this system lists no mappings")
def test_no_view_holds_the_mapped_checkpoint(heads: StatelessHeads, backbone: Backbone, tmp_path: Path) -> None:
    nn.Module.half(heads).save_pretrained(tmp_path)
    loaded = load_heads(tmp_path, backbone).draft_only()
    assert loaded.fingerprint
    assert str(tmp_path) not in MAPPINGS.read_text()
