from dataclasses import replace

import pytest
import torch
from torch import nn

from entmtp.errors import EntMTPError
from entmtp.models import transformers_build
from entmtp.models.build import build_backbone
from entmtp.models.kernels import compiled, merged_projections
from entmtp.models.kernels.block_formats import GGMLQuantizationType
from entmtp.models.kernels.block_weight import BlockLinear, BlockWeight, Weight, dequantized
from entmtp.models.kernels.choices import CHOICES
from entmtp.models.kernels.merged_projections import (
    MergedLinear,
    MergedProduct,
    collect_siblings,
    merge_in_place,
    merge_linear_layers,
)
from entmtp.models.kernels.packed_linear import PackedLinear, can_pack
from entmtp.policies.static import StaticPolicy
from tests.helpers.small_cases import SMALL_VOCAB, single_engine, small_heads, small_prompt
from tests.helpers.tiny_models import TREES, greedy, random_tokens, tiny_model

Q8_0 = GGMLQuantizationType.Q8_0


class Plain(nn.Linear):
    """A linear layer with a given weight that counts its calls."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=bias is not None)
        self.weight.data.copy_(weight)
        if bias is not None:
            self.bias.data.copy_(bias)
        self.calls = 0

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(states)


class Counted:
    """Factory of :class:`Plain` layers that records them."""

    def __init__(self) -> None:
        self.made: list[Plain] = []

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
        self.made.append(Plain(weight, bias))
        return self.made[-1]


@torch.inference_mode()
def test_siblings_are_found_by_the_tensor_that_they_are_given() -> None:
    model = tiny_model("llama")
    with collect_siblings(model) as groups:
        model(torch.tensor([random_tokens(5)]))
        model(torch.tensor([random_tokens(5)]))
    names = {module: name.rsplit(".", 1)[-1] for name, module in model.named_modules()}
    layers = model.config.num_hidden_layers
    assert [[names[layer] for layer in group] for group in groups] == [
        ["q_proj", "k_proj", "v_proj"],
        ["gate_proj", "up_proj"],
    ] * layers
    assert not any(module._forward_pre_hooks for module in model.modules())


class Parallel(nn.Module):
    """Two layers on the same states, one on a copy, and one of a subclass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.other = (nn.Linear(6, size) for size in (3, 5, 4))
        self.own = Plain(torch.zeros(2, 6), None)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        parts = [self.first(states), self.second(states), self.other(states.clone()), self.own(states)]
        return torch.cat(parts, dim=-1)


def test_neither_a_layer_on_another_tensor_nor_a_subclass_joins() -> None:
    model = Parallel()
    with collect_siblings(model) as groups:
        model(torch.randn(2, 6))
    assert groups == [[model.first, model.second]]


@pytest.mark.parametrize("biased", [(False, False), (True, True), (True, False), (False, True)])
def test_a_merged_product_equals_its_layers(biased: tuple[bool, bool]) -> None:
    layers = [nn.Linear(6, size, bias=bias) for size, bias in zip((3, 5), biased, strict=True)]
    product = Counted()
    with torch.inference_mode():
        merged = MergedProduct(layers, product)
        states = torch.randn(2, 4, 6)
        for number, layer in enumerate(layers):
            assert torch.allclose(merged.output(number, states), layer(states), atol=1e-6)
    assert product.made[0].calls == 1
    assert (product.made[0].bias is not None) is any(biased)


@torch.inference_mode()
def test_an_output_is_never_that_of_other_states() -> None:
    layers = [nn.Linear(6, 3), nn.Linear(6, 5)]
    merged = MergedProduct(layers, Counted())
    before, after = torch.randn(2, 6), torch.randn(4, 6)
    merged.output(0, before)  # as if an error stopped the pass here, so that the second output remains
    for number, layer in enumerate(layers):
        assert torch.allclose(merged.output(number, after), layer(after), atol=1e-6)


@torch.inference_mode()
def test_states_that_were_changed_in_place_are_multiplied_anew() -> None:
    layers = [nn.Linear(6, 3), nn.Linear(6, 5)]
    merged, states = MergedProduct(layers, Counted()), torch.randn(2, 6)
    for _ in range(2):
        for number, layer in enumerate(layers):
            assert torch.allclose(merged.output(number, states), layer(states), atol=1e-6)
        states += 1


def test_merged_layers_compute_what_the_model_did() -> None:
    model, states = Parallel(), torch.randn(2, 6)
    with torch.inference_mode():
        expected = model(states)
        merge_linear_layers(model, [[model.first, model.second]], Counted())
        assert [type(layer) for layer in model.children()] == [MergedLinear, MergedLinear, nn.Linear, Plain]
        assert torch.allclose(model(states), expected, atol=1e-6)


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of all memory that the parameters lie in, each counted once."""
    storages = {weight.untyped_storage().data_ptr(): weight.untyped_storage() for weight in model.parameters()}
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "mistral", "gemma2", "phi"])
class TestMergedInPlace:
    def test_the_model_computes_what_it_did_and_takes_no_more_memory(self, model_type: str) -> None:
        model, untouched = tiny_model(model_type), tiny_model(model_type)
        before = parameter_bytes(model)
        backbone = build_backbone(model, "merged")
        assert (backbone.kernels, backbone.kernels_description) == ("merged", "merged float32 (PyTorch)")
        merged = [layer for layer in backbone.model.modules() if isinstance(layer, MergedLinear)]
        assert len(merged) >= 3 * model.config.num_hidden_layers
        assert parameter_bytes(model) == parameter_bytes(backbone.model) == before
        own = [layer.weight for layer in merged if layer.weight is not None]
        assert len(own) == len(merged)
        assert all(weight.untyped_storage().nbytes() > weight.nbytes for weight in own)
        storages = {weight.untyped_storage().data_ptr() for weight in backbone.model.parameters()}
        assert storages == {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        for name, weight in untouched.named_parameters():
            assert torch.equal(model.get_parameter(name), weight)
        tokens = torch.tensor([random_tokens(9)])
        with torch.inference_mode():
            logits, expected = model(tokens).logits, untouched(tokens).logits
            torch.testing.assert_close(logits, expected, rtol=0, atol=0)
            torch.testing.assert_close(backbone.model(tokens).logits, expected, rtol=1e-4, atol=1e-4)

    def test_it_writes_the_models_own_text(self, model_type: str) -> None:
        backbone = build_backbone(tiny_model(model_type, vocab_size=SMALL_VOCAB), "merged")
        done = single_engine(backbone, small_heads("hydra", backbone), StaticPolicy(TREES["bushy"], 8))
        prompt = small_prompt(9)
        expected = greedy(tiny_model(model_type, vocab_size=SMALL_VOCAB), prompt, 40)
        assert done.generate(prompt, 40).tokens == expected


@pytest.mark.parametrize("biased", [(True, True), (True, False)])
def test_biases_are_merged_in_place_too(biased: tuple[bool, bool]) -> None:
    model, states = Parallel(), torch.randn(2, 6)
    for layer, has_bias in zip((model.first, model.second), biased, strict=True):
        if not has_bias:
            layer.register_parameter("bias", None)
    expected = model(states)
    merge_in_place(model, [[model.first, model.second]])
    torch.testing.assert_close(model(states), expected)
    assert [layer.bias is not None for layer in (model.first, model.second)] == list(biased)
    assert model.first.bias.untyped_storage().nbytes() == 4 * (3 + 5)


def test_where_nothing_can_be_merged_that_is_said() -> None:
    with pytest.raises(EntMTPError, match=r"^kernels: 'merged' finds no layers .* 'gpt2'; use 'eager'"):
        build_backbone(tiny_model("gpt2"), "merged")


def test_a_merge_that_changes_the_logits_is_refused_and_auto_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    right = merged_projections._plain_product
    wrong = lambda weight, bias: right(weight * 1.1, bias)  # noqa: E731
    monkeypatch.setattr(merged_projections, "_plain_product", wrong)
    with pytest.raises(EntMTPError, match="'merged' are refused for lossless decoding: the logits differ"):
        build_backbone(tiny_model("llama"), "merged")
    monkeypatch.setattr(transformers_build, "supported_kernels", lambda *args: ["merged", "eager"])
    backbone = build_backbone(tiny_model("llama"))
    assert backbone.kernels_description.startswith("eager float32 (PyTorch); kernels: 'merged' are refused")


def test_kernels_after_refused_ones_are_merged_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(weight: Weight, bias: torch.Tensor | None) -> PackedLinear:
        return PackedLinear(dequantized(weight) * 1.1, bias)

    monkeypatch.setitem(CHOICES, "packed", replace(CHOICES["packed"], make_layer=broken))
    monkeypatch.setattr(transformers_build, "supported_kernels", lambda *args: ["packed", "merged"])
    backbone = build_backbone(tiny_model("llama"))
    assert backbone.kernels == "merged"
    assert any(isinstance(layer, MergedLinear) for layer in backbone.model.modules())


def test_a_weight_that_is_more_than_a_tensor_stays() -> None:
    class Quantized(torch.Tensor):
        pass

    model, states = Parallel(), torch.randn(2, 6)
    expected = model(states)
    model.second.weight = nn.Parameter(model.second.weight.data.as_subclass(Quantized), requires_grad=False)
    merge_in_place(model, [[model.first, model.second]])
    assert type(model.first) is nn.Linear
    torch.testing.assert_close(model(states).as_subclass(torch.Tensor), expected)


def test_blocks_are_unpacked_before_they_are_merged() -> None:
    model = tiny_model("llama", hidden_size=64)
    expected = build_backbone(tiny_model("llama", hidden_size=64), "eager")
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and name.endswith("proj"):
                setattr(parent, name, BlockLinear(BlockWeight.rounded(layer.weight.data, Q8_0), None))
    backbone = build_backbone(model, "merged")
    assert sum(isinstance(layer, MergedLinear) for layer in backbone.model.modules()) == 5 * 2
    tokens = torch.tensor([random_tokens(9)])
    with torch.inference_mode():
        assert (backbone.model(tokens).logits - expected.model(tokens).logits).abs().max() < 1


@pytest.mark.skipif(not can_pack(torch.float32, torch.device("cpu")), reason="this build of PyTorch has no oneDNN")
class TestBackbone:
    def broken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        right = PackedLinear.forward
        monkeypatch.setattr(PackedLinear, "forward", lambda layer, states: right(layer, states) + states.shape[1])

    def test_kernels_that_fail_the_self_test_are_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broken(monkeypatch)
        monkeypatch.setattr(compiled, "unsupported_reason", lambda: "needs a C++ compiler")
        backbone = build_backbone(tiny_model("llama"))
        assert backbone.kernels == "eager"
        assert backbone.kernels_description.startswith("eager float32 (PyTorch); kernels: 'packed' are refused")
        assert not any(isinstance(module, PackedLinear | MergedLinear) for module in backbone.model.modules())

    def test_requested_by_name_they_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broken(monkeypatch)
        with pytest.raises(EntMTPError, match="kernels: 'packed' are refused"):
            build_backbone(tiny_model("llama"), kernels="packed")
