from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from entmtp.models.build import build_backbone
from entmtp.models.kernels.packed_linear import PackedLinear, can_pack, replace_linear_layers
from tests.helpers.tiny_models import greedy, random_tokens, tiny_model

pytestmark = pytest.mark.skipif(
    not can_pack(torch.float32, torch.device("cpu")), reason="this build of PyTorch has no oneDNN"
)


@given(st.integers(1, 70), st.integers(1, 40), st.integers(1, 40), st.booleans(), st.integers(0, 2**16))
def test_a_packed_layer_multiplies_like_a_plain_one(rows: int, width: int, out: int, biased: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    states, weight = (torch.randn(size, width, generator=generator) for size in (rows, out))
    bias = torch.randn(out, generator=generator) if biased else None
    with torch.inference_mode():
        found = PackedLinear(weight, bias)(states[None])
    assert torch.allclose(found[0], nn.functional.linear(states, weight, bias), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not can_pack(torch.bfloat16, torch.device("cpu")), reason="this CPU packs no bfloat16")
def test_bfloat16_is_packed_too() -> None:
    states, weight = torch.randn(5, 64).bfloat16(), torch.randn(48, 64).bfloat16()
    with torch.inference_mode():
        found = PackedLinear(weight, None)(states)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), states.float() @ weight.float().t(), rtol=0.02, atol=0.1)


@given(st.integers(2, 64), st.data())
def test_a_row_does_not_depend_on_other_rows(rows: int, data: st.DataObject) -> None:
    weight, states = torch.randn(96, 64), torch.randn(rows, 64)
    row = data.draw(st.integers(0, rows - 1))
    with torch.inference_mode():
        layer = PackedLinear(weight, None)
        alone, among = layer(states[row : row + 1])[0], layer(states)[row]
    assert torch.allclose(alone, among, rtol=1e-5, atol=1e-5)


class Doubling(nn.Linear):
    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(states)


def test_only_linear_layers_are_replaced() -> None:
    layers = {"plain": nn.Linear(8, 8), "transposed": Conv1D(8, 8), "own": Doubling(8, 8), "norm": nn.LayerNorm(8)}
    model = nn.ModuleDict(layers).requires_grad_(False)
    replace_linear_layers(model, [], PackedLinear, keep_weight=layers["plain"])
    kinds = [type(layer).__name__ for layer in model.values()]
    assert kinds == ["PackedLinear", "PackedLinear", "Doubling", "LayerNorm"]
    plain, transposed = cast(Any, model["plain"]), cast(Any, model["transposed"])
    assert plain.weight is layers["plain"].weight
    assert transposed.weight is None
    states = torch.randn(3, 8)
    with torch.inference_mode():
        for name, layer in layers.items():
            assert torch.allclose(model[name](states), layer(states), atol=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_the_given_model_is_unchanged_and_shares_its_parameters(model_type: str) -> None:
    model = tiny_model(model_type)
    before = {name: type(module) for name, module in model.named_modules()}
    backbone = build_backbone(model, "packed")
    assert backbone.kernels == "packed"
    assert any(isinstance(module, PackedLinear) for module in backbone.model.modules())
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert model.config._attn_implementation != backbone.model.config._attn_implementation
    assert backbone.embeddings is model.get_input_embeddings().weight
    assert greedy(backbone.model, random_tokens(6), 12) == greedy(model, random_tokens(6), 12)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_the_output_layer_that_decodes_is_packed_and_the_given_models_is_not(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(model_type)
    backbone = build_backbone(model, "packed")
    multiplied: list[tuple[int, ...]] = []
    forward = PackedLinear.forward

    def counted(layer: PackedLinear, states: torch.Tensor) -> torch.Tensor:
        product = forward(layer, states)
        multiplied.append(tuple(product.shape))
        return product

    monkeypatch.setattr(PackedLinear, "forward", counted)
    backbone.logits(torch.randn(3, backbone.hidden_size))
    assert multiplied == [(1, 3, backbone.vocab_size)]
    assert type(model.get_output_embeddings()) is nn.Linear


def test_eager_keeps_the_models_own_layers() -> None:
    backbone = build_backbone(tiny_model("llama"), kernels="eager")
    assert backbone.kernels == "eager"
    assert not any(isinstance(module, PackedLinear) for module in backbone.model.modules())
