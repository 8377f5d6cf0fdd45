"""EAGLE-3 heads on the compiled kernels, with weights and inputs rounded to int8."""

import pytest
import torch

from entmtp.heads.autoregressive.heads import AutoregressiveHeads
from entmtp.heads.eagle3 import Eagle3Heads
from entmtp.heads.eagle3.configuration import Eagle3Config
from entmtp.models.build import build_backbone
from entmtp.models.kernels import compiled
from tests.helpers.eagle3_drafting import Drafting, deep_model
from tests.helpers.heads_with_caches import BUSHY
from tests.helpers.tiny_models import VOCAB, random_tokens

pytestmark = pytest.mark.skipif(compiled.unsupported_reason() is not None, reason="no C++ compiler")


def random_eagle3(*, norm_output: bool = False) -> Eagle3Heads:
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
        norm_output=norm_output,
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


@pytest.mark.parametrize("norm_output", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_one_call_guesses_what_layers_and_output_layer_do(
    norm_output: bool, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = random_eagle3(norm_output=norm_output).attach(build_backbone(deep_model(), "fused"))
    torch.nn.init.normal_(heads.weights.norm)
    if biased:
        heads.output_bias = torch.randn(VOCAB)
    tokens, log_probs = drafted(heads)
    monkeypatch.setattr(Eagle3Heads, "guess", AutoregressiveHeads.guess)
    expected, its = drafted(heads)
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(log_probs, its, atol=1e-5, rtol=1e-5)


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
