from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from entmtp.models.known_kinds import is_known
from entmtp.models.transformers_backbone import TransformersBackbone
from tests.helpers.tiny_models import tiny_model


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_transformers_own_models_are_known(model_type: str) -> None:
    model: Any = tiny_model(model_type)
    parts = {"ForCausalLM": model, "Model": model.model, "DecoderLayer": model.model.layers[0]}
    assert all(is_known(module, part) for part, module in parts.items())
    assert not is_known(model, "Model")


def test_other_models_are_not() -> None:
    class Changed(LlamaForCausalLM):
        pass

    class MistralForCausalLM(LlamaForCausalLM):
        pass

    config: Any = tiny_model("llama").config
    others = [tiny_model("granite"), tiny_model("gemma3_text"), Changed(config), MistralForCausalLM(config)]
    assert not any(is_known(model, "ForCausalLM") for model in others)


def hook(model: Any) -> None:
    model.register_forward_hook(lambda module, inputs, output: setattr(output, "logits", output.logits * 2))


def pre_hook(model: Any) -> None:
    def doubled(module: Any, inputs: Any, named: Any) -> Any:
        return inputs, named | {"inputs_embeds": named["inputs_embeds"] * 2}

    model.register_forward_pre_hook(doubled, with_kwargs=True)


@pytest.mark.parametrize("change", [hook, pre_hook])
@torch.inference_mode()
def test_a_change_of_the_logits_is_not_left_out(change: Any) -> None:
    model, states = tiny_model("llama"), torch.randn(1, 3, 32)
    before = TransformersBackbone(model).logits(states)
    change(model)
    assert torch.allclose(TransformersBackbone(model).logits(states), 2 * before, rtol=1e-5)


def test_a_model_with_another_forward_is_not_known() -> None:
    model: Any = tiny_model("llama")
    model.forward = lambda *_, **__: None
    assert not is_known(model, "ForCausalLM")
