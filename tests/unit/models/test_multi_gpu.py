"""A model whose last layers are on another device writes the same text, and never mixes tensors of two devices."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from accelerate import dispatch_model
from transformers import PreTrainedModel

from entmtp.decoding.engine import Engine
from entmtp.decoding.request import Request
from entmtp.errors import EntMTPError
from entmtp.heads.base import DraftHeads
from entmtp.heads.checkpoint import load_heads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.loading.load import load_model
from entmtp.models.multi_gpu import check_all_on_gpus
from entmtp.policies.base import Policy
from entmtp.policies.static import StaticPolicy
from entmtp.settings import EngineSettings, SamplingParams
from tests.helpers.heads_with_features import entering
from tests.helpers.hydra_plus_plus_heads import random_hydra_plus_plus_heads
from tests.helpers.second_device import ELSEWHERE, second_device
from tests.helpers.small_cases import (
    SMALL_VOCAB,
    small_backbone,
    small_dynamic_policy,
    small_heads,
    small_prompt,
)
from tests.helpers.tiny_models import CONTEXT, TREES, greedy, tiny_model

DEVICE_MAP = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": ELSEWHERE,
    "model.norm": ELSEWHERE,
    "lm_head": ELSEWHERE,
}
POLICIES: dict[str, Policy] = {
    "static": StaticPolicy(TREES["wide"], 8),
    "dynamic": small_dynamic_policy(0.01, 0.01),
}


@pytest.fixture(autouse=True)
def _second_device() -> Iterator[None]:
    with second_device():
        yield


@pytest.fixture(scope="module")
def plain() -> PreTrainedModel:
    return tiny_model("llama", vocab_size=SMALL_VOCAB)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    with second_device():
        model = tiny_model("llama", vocab_size=SMALL_VOCAB)
        return build_backbone(dispatch_model(model, DEVICE_MAP, main_device="cpu", skip_keys="past_key_values"))


def heads_of(kind: str, backbone: Backbone) -> DraftHeads:
    return random_hydra_plus_plus_heads(backbone) if kind == "prefix-mlp" else small_heads(kind, backbone)


def test_the_second_device_raises_if_tensors_are_mixed() -> None:
    here, there = torch.ones(2), torch.ones(2, device=ELSEWHERE)
    assert there.device == ELSEWHERE
    assert torch.equal((there + there).to("cpu"), here + here)
    with pytest.raises((AssertionError, RuntimeError), match=r"aten.add.Tensor was given tensors on|same device"):
        here + there


def test_keys_and_values_are_on_the_device_of_their_layer(backbone: Backbone) -> None:
    assert backbone.devices == [torch.device("cpu"), ELSEWHERE]
    assert backbone.device == torch.device("cpu")
    assert backbone.kernels_description == "eager float32 (PyTorch); spread over 2 devices"
    cache = backbone.new_cache(slots=2, capacity=32)
    assert [layer.keys.device for layer in cache.tree_layers if layer.keys is not None] == backbone.devices


@pytest.mark.parametrize(("kind", "policy"), [("medusa", "static"), ("hydra", "dynamic"), ("prefix-mlp", "static")])
def test_several_requests_write_the_models_own_text(
    kind: str, policy: str, backbone: Backbone, plain: PreTrainedModel
) -> None:
    settings = EngineSettings(slots=2, context=CONTEXT)
    engine = Engine(backbone, heads_of(kind, backbone), POLICIES[policy], settings)
    shared = small_prompt(8, seed=5)
    prompts = [[*shared, *small_prompt(number, seed=number)] for number in (3, 1, 5)]
    params = SamplingParams(temperature=0.0, max_tokens=10)
    done = [engine.submit(Request(str(at), prompt, params)) for at, prompt in enumerate(prompts)]
    while not engine.idle:
        engine.step()
    for prompt, completion in zip(prompts, done, strict=True):
        assert completion.tokens == greedy(plain, prompt, 10)
    assert any(completion.accepted for completion in done), "nothing was accepted: the case shows nothing"
    assert done[2].reused_tokens, "no slot started with the prefix of another"


@torch.inference_mode()
def test_states_that_enter_layers_of_any_device_are_handed_out_on_the_first(
    backbone: Backbone, plain: PreTrainedModel
) -> None:
    text = small_prompt(9)
    features = backbone.prefill(text, 0, backbone.new_cache(1, 32), (1, 0)).features
    assert features.device == backbone.device
    torch.testing.assert_close(features, entering(plain, text, (1, 0)), rtol=1e-4, atol=1e-4)


def test_sampled_text_equals_that_of_one_device(backbone: Backbone) -> None:
    params = SamplingParams(temperature=0.8, top_p=0.9, repetition_penalty=1.1, seed=3, max_tokens=20, logprobs=2)
    texts = []
    for one in (backbone, small_backbone()):
        engine = Engine(one, small_heads("hydra", one), POLICIES["static"], EngineSettings(slots=1, context=CONTEXT))
        completion = engine.submit(Request("one", small_prompt(9), params))
        while not engine.idle:
            engine.step()
        texts.append(completion.tokens)
    assert texts[0] == texts[1]


def test_a_multi_device_model_refuses_other_kernels_and_native_heads(backbone: Backbone) -> None:
    with pytest.raises(EntMTPError, match="kernels: 'packed' are for a model on one device; use 'auto'"):
        build_backbone(backbone.model, "packed")
    with pytest.raises(EntMTPError, match="model type 'llama' has no multi-token-prediction"):
        load_heads("native", backbone)


def test_balanced_without_gpus_is_refused() -> None:
    if torch.cuda.device_count():
        pytest.skip("there are some")
    with pytest.raises(EntMTPError, match="device 'balanced': PyTorch sees 0 CUDA devices; use 'cpu'"):
        load_model("bundled", device="balanced")


def test_layers_that_do_not_fit_on_the_gpus_are_named() -> None:
    model = SimpleNamespace(hf_device_map={"model.layers.0": 0, "model.layers.1": "cpu"})
    with pytest.raises(EntMTPError, match=r"^model 'org/large': .* 1 .* 'model.layers.1' "):
        check_all_on_gpus("org/large", model)
