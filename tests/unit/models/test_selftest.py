from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel

from entmtp.errors import EntMTPError
from entmtp.models.build import build_backbone
from entmtp.models.kernels import compiled
from entmtp.settings import Kernels
from tests.helpers.tiny_models import SUPPORTED, WINDOW, greedy, random_tokens, tiny_model


def _encoder_decoder(model_type: str, **sizes: int) -> PreTrainedModel:
    return AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(model_type, vocab_size=96, d_model=32, **sizes))


def _t5() -> PreTrainedModel:
    return _encoder_decoder("t5", d_ff=64, d_kv=8, num_layers=2, num_heads=4)


def _bart() -> PreTrainedModel:
    layers = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    return _encoder_decoder("bart", encoder_ffn_dim=64, decoder_ffn_dim=64, **layers)


def _qwen3_next() -> PreTrainedModel:
    linear: dict[str, Any] = {f"linear_num_{kind}_heads": 2 for kind in ("key", "value")}
    linear |= {f"linear_{kind}_head_dim": 8 for kind in ("key", "value")}
    linear |= {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    return tiny_model("qwen3_next", layer_types=["linear_attention", "full_attention"], **linear)


def _gpt_neo() -> PreTrainedModel:
    return tiny_model("gpt_neo", attention_types=[[["global", "local"], 1]], num_layers=2, window_size=WINDOW)


def _shifted_llama() -> PreTrainedModel:
    """A model that adds each token's state to the next row, which is right only in a sequential pass."""
    model = tiny_model("llama")
    model.model.layers[0].register_forward_hook(lambda module, args, output: output + output.roll(1, dims=1))
    return model


REFUSED: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "t5": (_t5, "it is an encoder-decoder"),
    "bart": (_bart, "it is an encoder-decoder"),
    "mamba": (lambda: tiny_model("mamba", state_size=4), "layers have a recurrent state"),
    "rwkv": (lambda: tiny_model("rwkv", attention_hidden_size=32), "layers have a recurrent state"),
    "qwen3_next": (_qwen3_next, "its linear_attention layers have a recurrent state"),
    "llama4_text": (
        lambda: tiny_model(
            "llama4_text",
            intermediate_size_mlp=64,
            num_local_experts=2,
            layer_types=["chunked_attention", "full_attention"],
        ),
        "its chunked_attention layers",
    ),
    "gpt_neo": (_gpt_neo, "local attention layers count cache rows"),
    "bert": (lambda: tiny_model("bert", is_decoder=False), "caches no keys and values"),
    "bloom": (lambda: tiny_model("bloom", n_head=4), "a tree pass raised"),
    "llama": (_shifted_llama, "differs from its paths run alone by"),
}


@pytest.mark.parametrize("model_type", REFUSED)
def test_an_unsupported_model_is_refused_by_type_and_reason_and_left_unchanged(model_type: str) -> None:
    build, reason = REFUSED[model_type]
    model = build()
    attention = model.config._attn_implementation
    with pytest.raises(EntMTPError) as raised:
        build_backbone(model)
    message = str(raised.value)
    assert message.startswith(f"model: type '{model_type}' is not supported because ")
    assert reason in message
    assert "\n" not in message
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_the_self_test_leaves_the_configured_window_unchanged(model_type: str) -> None:
    before = tiny_model(model_type).config.to_dict()
    backbone = build_backbone(tiny_model(model_type))
    assert backbone.model.config.to_dict() == before


def test_a_refusal_does_not_change_what_the_model_generates() -> None:
    model = _shifted_llama()
    before = greedy(model, random_tokens(5), 8)
    with pytest.raises(EntMTPError):
        build_backbone(model)
    assert greedy(model, random_tokens(5), 8) == before


@pytest.mark.parametrize("kernels", ["auto", "eager"])
def test_the_models_own_kernels_are_refused_too_where_a_token_depends_on_others(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "unsupported_reason", lambda: "is not tested here: fused layers run no hooks")
    model = tiny_model("llama")
    model.model.layers[0].register_forward_hook(lambda module, args, output: output + (output.shape[1] == 1))
    with pytest.raises(
        EntMTPError, match=r"'eager' are refused for lossless .* other tokens of a pass, by .*; use another model"
    ):
        build_backbone(model, kernels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_passes(dtype: torch.dtype) -> None:
    assert build_backbone(tiny_model("llama", dtype=dtype, initializer_range=0.1)).dtype == dtype


def test_a_model_whose_weights_are_not_finite_is_refused() -> None:
    model = tiny_model("llama")
    model.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(EntMTPError, match="differs from its paths run alone by nan"):
        build_backbone(model)
