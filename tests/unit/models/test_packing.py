import time
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from entmtp.decoding.engine import Engine
from entmtp.models import packing
from entmtp.models.backbone import Backbone
from entmtp.models.packing import ByRows, PackedLinear, can_pack, keep_plain_rows, replace_linear_layers
from entmtp.scheduling.policies import StaticPolicy
from tests.tiny import TREES, greedy, random_tokens, tiny_model

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


def test_bfloat16_is_packed_too() -> None:
    states, weight = torch.randn(5, 64).bfloat16(), torch.randn(48, 64).bfloat16()
    with torch.inference_mode():
        found = PackedLinear(weight, None)(states)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), states.float() @ weight.float().t(), rtol=0.02, atol=0.1)


@given(st.integers(2, 64), st.data())
def test_a_row_does_not_depend_on_the_rows_beside_it(rows: int, data: st.DataObject) -> None:
    weight, states = torch.randn(96, 64), torch.randn(rows, 64)
    row = data.draw(st.integers(0, rows - 1))
    with torch.inference_mode():
        layer = PackedLinear(weight, None)
        alone, among = layer(states[row : row + 1])[0], layer(states)[row]
    assert torch.allclose(alone, among, rtol=1e-5, atol=1e-5)


class Doubling(nn.Linear):
    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(states)


def test_linear_layers_are_replaced_and_nothing_else() -> None:
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
def test_the_given_model_stays_as_it_is_and_shares_its_parameters(model_type: str) -> None:
    model = tiny_model(model_type)
    before = {name: type(module) for name, module in model.named_modules()}
    backbone = Backbone(model)
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
    backbone = Backbone(model)
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
    backbone = Backbone(tiny_model("llama"), kernels="eager")
    assert backbone.kernels == "eager"
    assert not any(isinstance(module, PackedLinear) for module in backbone.model.modules())


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text"])
def test_single_rows_go_through_the_models_own_layers_where_those_are_faster(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_plain_rows_are_faster", lambda replaced: True)
    model = tiny_model(model_type)
    backbone = Backbone(model)
    assert backbone.kernels_in_words.endswith(", single rows plain")
    assert (backbone.kernels, backbone.embeddings) == ("packed", model.get_input_embeddings().weight)
    switches = [module for module in backbone.model.modules() if isinstance(module, ByRows)]
    owners = {id(weight) for weight in model.parameters()}
    assert switches
    assert all(id(switch.weight) in owners for switch in switches)
    rows: dict[str, set[int]] = {"plain": set(), "packed": set()}

    def note(kind: str) -> Any:
        return lambda layer, inputs: rows[kind].add(inputs[0].numel() // inputs[0].shape[-1])

    for switch in switches:
        switch.plain.register_forward_pre_hook(note("plain"))
        switch.packed.register_forward_pre_hook(note("packed"))
    ids = random_tokens(6)
    assert Engine(backbone, None, StaticPolicy(TREES["root"], 8)).generate(ids, 12).tokens == greedy(model, ids, 12)
    assert rows["plain"] == {1}
    assert min(rows["packed"]) > 1


@pytest.mark.parametrize(("plain_ms", "kept"), [(0.0, True), (3.0, False)])
def test_the_faster_kind_of_layer_gets_single_rows(
    plain_ms: float, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_LEAST_TIMED_BYTES", 0)

    class Slow(nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            time.sleep(plain_ms / 1e3)
            return super().forward(states)

    class Packed(nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            time.sleep(1.5e-3)
            return super().forward(states)

    packed = Packed(8, 8)
    model = nn.ModuleDict({"layer": packed}).requires_grad_(False)
    assert keep_plain_rows(model, {packed: Slow(8, 8)}) is kept
    assert isinstance(model["layer"], ByRows) is kept


def test_a_model_that_fits_in_a_cache_is_not_timed() -> None:
    assert Backbone(tiny_model("llama")).kernels_in_words == "packed float32 (oneDNN)"
