import pytest
import torch
from torch import nn

from entmtp.errors import EntMTPError
from entmtp.models.build import build_backbone
from entmtp.models.kernels import compiled
from entmtp.models.kernels.merged_projections import MergedLinear, MergedProduct, collect_siblings, merge_linear_layers
from entmtp.models.kernels.packed_linear import PackedLinear, can_pack
from tests.helpers.tiny_models import random_tokens, tiny_model


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
