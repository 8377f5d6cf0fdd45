from typing import get_args

import pytest
import torch
from torch import nn

from entmtp.errors import EntMTPError
from entmtp.models.build import build_backbone
from entmtp.models.kernels import choices as module
from entmtp.models.kernels.choices import CHOICES, KernelChoice, describe_kernels, parse_kernels, supported_kernels
from entmtp.models.kernels.packed_linear import MakeLayer
from entmtp.models.kernels.quantized_linear import Int8Linear, int8_saturates, row_scale
from entmtp.settings import Kernels
from tests.helpers.tiny_models import tiny_model

CPU = torch.device("cpu")
HERE = [name for name, choice in CHOICES.items() if choice.unsupported_reason(torch.float32, CPU) is None]
LAYERS = [
    (name, choice.make_layer) for name, choice in CHOICES.items() if name in HERE and choice.make_layer is not None
]
MODELS_AND_NAMES = [
    # To compile one takes half a minute and more.
    pytest.param(model_type, name, marks=pytest.mark.slow if name == "compiled" and model_type != "llama" else ())
    for model_type in ("llama", "gpt2", "gemma2")
    for name in HERE
]
each_layer = pytest.mark.parametrize(("name", "make"), LAYERS, ids=[name for name, _ in LAYERS])
ROUNDING = {"fused": 1e-5, "packed": 1e-5, "compiled": 1e-5, "bfloat16": 1e-2, "float16": 1e-3, "int8": 3e-2}


class SharedScale(Int8Linear):
    """Linear layer with the usual dynamic quantization: one scale for all rows of a pass."""

    def states_scale(self, states: torch.Tensor) -> torch.Tensor:
        return row_scale(states).amax()


def test_every_name_of_the_setting_has_a_choice() -> None:
    assert {"auto", *CHOICES} == set(get_args(Kernels))


@each_layer
@pytest.mark.parametrize("biased", [False, True])
@torch.inference_mode()
def test_a_layer_multiplies_like_a_plain_one_to_its_rounding(name: str, make: MakeLayer, biased: bool) -> None:
    plain, states = nn.Linear(64, 96, bias=biased), torch.randn(2, 5, 64)
    found, expected = make(plain.weight, plain.bias)(states), plain(states)
    assert (found.dtype, found.shape) == (torch.float32, expected.shape)
    assert ((found - expected).norm() / expected.norm()).item() < ROUNDING[name]


@each_layer
@pytest.mark.parametrize("rows", [2, 5, 17, 40])
@torch.inference_mode()
def test_a_row_does_not_depend_on_other_rows(name: str, make: MakeLayer, rows: int) -> None:
    # Rows of very different sizes, so that a shared scale would show.
    states = torch.randn(rows, 64) * torch.logspace(-2, 2, rows)[:, None]
    layer = make(torch.randn(96, 64), None)
    among = layer(states)
    for row in range(rows):
        # Sums that nearly cancel are as exact as their terms, not as themselves.
        rtol, atol = 2**-7 if name == "bfloat16" else 0.0, 1e-5 * float(among[row].abs().max())
        assert torch.allclose(layer(states[row : row + 1])[0], among[row], rtol=rtol, atol=atol)


@torch.inference_mode()
def test_a_row_of_zeros_stays_zero_in_eight_bits() -> None:
    layer = Int8Linear(torch.randn(8, 16), None)
    assert layer(torch.zeros(2, 16)).abs().max() == 0


@pytest.mark.parametrize(("model_type", "name"), MODELS_AND_NAMES)
def test_a_good_choice_is_accepted(model_type: str, name: Kernels) -> None:
    torch._dynamo.reset()  # how often a function is compiled is limited, and all models count together
    backbone = build_backbone(tiny_model(model_type, initializer_range=0.1), name)
    assert backbone.kernels == name
    assert backbone.kernels_description == describe_kernels(name, torch.float32)
    make = CHOICES[name].make_layer
    if make is not None:
        assert isinstance(backbone.model.get_output_embeddings(), make)  # type: ignore[arg-type]


@pytest.mark.skipif("int8" not in HERE, reason="this CPU's 8-bit sums overflow")
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
class TestKernelsWhoseRowsDependOnEachOther:
    def replace(self, name: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
        good = CHOICES[name]
        # Any difference from the model is allowed, so that only the dependence on other rows is refused.
        bad = KernelChoice(
            SharedScale,
            good.description,
            good.unsupported_reason,
            batch_tolerance=CHOICES["int8"].batch_tolerance,
            model_tolerance=1e9,
        )
        monkeypatch.setitem(module.CHOICES, name, bad)

    def test_by_name_they_are_an_error(self, model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.replace("int8", monkeypatch)
        with pytest.raises(EntMTPError, match="'int8' are refused for lossless decoding: a token's logits depend on"):
            build_backbone(tiny_model(model_type), "int8")

    def test_auto_does_without_them_and_says_so(self, model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.replace("fused", monkeypatch)
        backbone = build_backbone(tiny_model(model_type))
        assert backbone.kernels == "packed"
        assert "a token's logits depend on the other tokens of a pass" in backbone.kernels_description
        assert not any(isinstance(layer, SharedScale) for layer in backbone.model.modules())


def test_logits_far_from_the_models_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(weight: torch.Tensor, bias: torch.Tensor | None) -> Int8Linear:
        return Int8Linear(weight / 2, bias)

    good = CHOICES["int8"]
    monkeypatch.setitem(
        module.CHOICES, "int8", KernelChoice(halved, "", lambda *_: None, good.batch_tolerance, good.model_tolerance)
    )
    with pytest.raises(EntMTPError, match="'int8' are refused for lossless decoding: the logits differ from"):
        build_backbone(tiny_model("llama"), "int8")


def test_a_choice_that_raises_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(layer: Int8Linear, states: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such\ninstruction")

    monkeypatch.setattr(Int8Linear, "forward", raising)
    monkeypatch.setattr(module, "int8_saturates", lambda: False)
    monkeypatch.setitem(module.CHOICES, "int8", KernelChoice(Int8Linear, "", lambda *_: None, 1, 1))
    with pytest.raises(EntMTPError, match="a pass raised RuntimeError: no such instruction; use 'eager'"):
        build_backbone(tiny_model("llama"), "int8")


@pytest.mark.parametrize(
    ("kernels", "dtype", "message"),
    [
        ("packed", torch.float16, r"kernels: 'packed' needs float32 or bfloat16 .* torch.float16 on cpu; use 'auto'"),
        ("int8", torch.bfloat16, r"kernels: 'int8' rounds float32 weights .* torch.bfloat16 on cpu; use 'auto'"),
    ],
)
def test_an_unsupported_choice_is_refused_with_its_reason(kernels: Kernels, dtype: torch.dtype, message: str) -> None:
    with pytest.raises(EntMTPError, match=message):
        supported_kernels(kernels, dtype, CPU)


def test_eight_bits_need_instructions_that_do_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert int8_saturates() == ("int8" not in HERE)
    right = Int8Linear.forward
    monkeypatch.setattr(Int8Linear, "forward", lambda layer, states: right(layer, states).clamp(max=30))
    with pytest.raises(EntMTPError, match="'int8' needs a CPU with VNNI instructions"):
        supported_kernels("int8", torch.float32, CPU)


def test_auto_never_takes_fewer_bits() -> None:
    assert supported_kernels("auto", torch.float32, CPU) == [
        name for name in ("fused", "packed", "eager") if name in HERE
    ]
    assert supported_kernels("auto", torch.float32, torch.device("cuda")) == ["eager"]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(EntMTPError, match="kernels: 'fast' is unknown; choose one of auto, fused, packed,"):
        parse_kernels("fast")
