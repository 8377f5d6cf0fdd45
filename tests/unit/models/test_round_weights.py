"""Weights rounded at load: near the model's own, read in blocks, and told with what they change."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from entmtp.errors import EntMTPError
from entmtp.models.build import build_backbone
from entmtp.models.fingerprint import model_fingerprint
from entmtp.models.kernels import compiled
from entmtp.models.kernels.block_weight import BlockEmbedding, BlockLinear, formats_of
from entmtp.models.round_weights import compare, parse_weights, round_weights
from entmtp.models.transformers_model import reference_model
from tests.helpers.tiny_models import greedy, random_tokens, tiny_model

Words = Callable[[str], PreTrainedTokenizerBase]
SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96}


@pytest.fixture
def tokenizer() -> Any:
    """Tokens of a text, which is all that is asked of a tokenizer here."""
    return lambda text: {"input_ids": random_tokens(48)}


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "gpt2"])
@pytest.mark.parametrize(("weights", "format"), [("q8", "Q8_0"), ("q4", "Q4_1")])
def test_a_rounded_model_runs_in_blocks_and_writes_its_own_text(
    model_type: str, weights: Any, format: str, tokenizer: Any
) -> None:
    model = tiny_model(model_type, **(SHAPE if model_type != "gpt2" else {"n_embd": 64}))
    said: list[str] = []
    before = model_fingerprint(model)
    round_weights(model, tokenizer, weights, said.append)
    assert "Q8_0" in formats_of(model)
    assert (format in formats_of(model)) or model_type == "gpt2"  # whose layers are no linear ones
    assert model_fingerprint(model) == before, "heads and banks of the model fit"
    backbone = build_backbone(model)
    if compiled.unsupported_reason() is None:
        assert "Q8_0" in backbone.kernels_description
    expected = greedy(reference_model(model), random_tokens(6), 8)
    cache = backbone.new_cache(slots=1, capacity=64)
    with torch.inference_mode():
        logits = backbone.logits(backbone.prefill([*random_tokens(6), *expected], 0, cache).hidden)
    assert logits[5:-1].argmax(-1).tolist() == expected
    (line,) = said
    found = re.fullmatch(
        rf"weights: '{weights}' take \d+ MB instead of \d+; on a text of 48 tokens the next token's chances differ by"
        r" (\d\.\d{4}) nats \(KL\), and (\d+)% of the likeliest tokens are the same",
        line,
    )
    assert found is not None
    assert 0 <= float(found[1]) < {"q8": 0.05, "q4": 1.0}[weights]  # random weights are sharp


def test_more_bits_change_less(tokenizer: Any) -> None:
    ids = torch.tensor([random_tokens(48)])
    with torch.inference_mode():
        own = tiny_model("llama", **SHAPE)(ids).logits[0].double().log_softmax(-1)
        found = {}
        for weights in ("q8", "q4"):
            model: Any = tiny_model("llama", **SHAPE)
            round_weights(model, tokenizer, weights, lambda line: None)
            found[weights] = compare(own, model(ids).logits[0].double().log_softmax(-1))
    assert 0 < found["q8"].divergence < found["q4"].divergence
    assert compare(own, own) == type(found["q8"])(0.0, 1.0, 48)


def test_own_weights_stay_as_they_are(tokenizer: Any) -> None:
    model = tiny_model("llama", **SHAPE)
    round_weights(model, tokenizer, "own", pytest.fail)
    assert formats_of(model) == []


def test_tied_layers_stay_tied_and_odd_widths_stay_plain(tokenizer: Any) -> None:
    model: Any = tiny_model("llama", **SHAPE, tie_word_embeddings=True)
    round_weights(model, tokenizer, "q4", lambda line: None)
    assert isinstance(model.model.embed_tokens, BlockEmbedding)
    assert isinstance(model.lm_head, BlockLinear)
    assert model.lm_head.blocks is model.model.embed_tokens.blocks
    odd: Any = tiny_model("llama", hidden_size=64, intermediate_size=70)
    round_weights(odd, tokenizer, "q4", lambda line: None)
    layer = odd.model.layers[0].mlp
    assert isinstance(layer.gate_proj, BlockLinear)
    assert type(layer.down_proj) is torch.nn.Linear


def test_what_cannot_be_rounded_is_one_line(tokenizer: Any) -> None:
    def refused(model: Any, message: str) -> None:
        with pytest.raises(EntMTPError, match=message):
            round_weights(model, tokenizer, "q4", lambda line: None)

    refused(tiny_model("llama", **SHAPE).bfloat16(), "weights: 'q4' are for a CPU and float32; leave them 'own'")
    rounded = tiny_model("llama", **SHAPE)
    round_weights(rounded, tokenizer, "q8", lambda line: None)
    refused(rounded, r"weights: the file has its own \(Q8_0\); leave them 'own'")
    odd: dict[str, Any] = {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16}
    refused(tiny_model("llama", **odd, intermediate_size=70), "no matrix has rows of whole blocks of 32")
    with pytest.raises(EntMTPError, match="weights: 'q3' is unknown; choose one of own, q8, q4"):
        parse_weights("q3")
