"""EAGLE-3 heads on the compiled kernels, with weights and inputs rounded to int8."""

import pytest
import torch

from entmtp.heads.eagle3 import Eagle3Heads
from entmtp.heads.eagle3.configuration import Eagle3Config
from entmtp.models.build import build_backbone
from entmtp.models.kernels import compiled
from tests.helpers.eagle3_drafting import Drafting, deep_model
from tests.helpers.heads_with_caches import BUSHY
from tests.helpers.tiny_models import VOCAB, random_tokens

pytestmark = pytest.mark.skipif(compiled.unsupported_reason() is not None, reason="no C++ compiler")


def random_eagle3() -> Eagle3Heads:
    torch.manual_seed(0)
    config = Eagle3Config(
        hidden_size=32,
        vocab_size=VOCAB,
        draft_vocab_size=VOCAB,
        feature_layers=[2, 4, 5],
        draft_hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    heads = Eagle3Heads(config)
    torch.nn.init.normal_(heads.weights.fc, std=0.1)
    return heads


def drafted(heads: Eagle3Heads) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and their log-probabilities of two requests' trees."""
    drafting = Drafting(heads, deep_model())
    for slot in range(2):
        drafting.prefill(slot, random_tokens(9 + slot, seed=slot), root=5)
    proposal = drafting.draft((0, 1), (BUSHY, BUSHY))
    return proposal.tokens, proposal.log_probs


def test_rounding_changes_little() -> None:
    (tokens, log_probs), (_, own) = (
        drafted(random_eagle3().attach(build_backbone(deep_model(), kernels))) for kernels in ("fused", "eager")
    )
    assert 0 < (log_probs - own).abs().max() < 0.05
    assert tokens.shape == (2, BUSHY.nodes + 1)


def test_heads_that_only_draft_draft_the_same() -> None:
    backbone = build_backbone(deep_model(), "fused")
    whole, alone = drafted(random_eagle3().attach(backbone)), drafted(random_eagle3().attach(backbone).draft_only())
    assert all(torch.equal(one, other) for one, other in zip(whole, alone, strict=True))


def test_training_drops_the_copied_weights() -> None:
    heads = random_eagle3().attach(build_backbone(deep_model(), "fused"))
    before, _ = drafted(heads)
    heads.train()
    with torch.no_grad():
        heads.weights.norm.mul_(-1)
    after, _ = drafted(heads.eval())
    assert not torch.equal(before, after)
