from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import nn

from entmtp.errors import EntMTPError
from entmtp.models import transformers_build
from entmtp.models.build import build_backbone
from entmtp.models.kernels import choices as module
from entmtp.models.kernels.block_weight import Weight, dequantized
from entmtp.models.kernels.choices import CHOICES, describe_kernels, parse_kernels, supported_kernels
from entmtp.models.kernels.packed_linear import MakeLayer, PackedLinear, can_pack
from entmtp.models.kernels.triton import support
from entmtp.settings import Kernels
from tests.helpers.tiny_models import tiny_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LOSSLESS = [name for name, choice in CHOICES.items() if not choice.digits]
HERE = [
    name
    for name in LOSSLESS
    if CHOICES[name].unsupported_reason(torch.float32, CPU) is None and not CHOICES[name].is_interpreted(CPU)
]
"""Choices that a CPU supports; not every model does."""
LAYERS = [
    (name, choice.make_layer) for name, choice in CHOICES.items() if name in HERE and choice.make_layer is not None
]
each_layer = pytest.mark.parametrize(("name", "make"), LAYERS, ids=[name for name, _ in LAYERS])
needs_packing = pytest.mark.skipif(not can_pack(torch.float32, CPU), reason="this build of PyTorch has no oneDNN")


class SharedScale(PackedLinear):
    """Linear layer with the usual dynamic quantization of states: one scale for all rows of a pass."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        scale = states.abs().amax() / 127
        return super().forward((states / scale).round() * scale)


def test_every_name_of_the_setting_has_a_choice() -> None:
    assert {"auto", *CHOICES} == set(get_args(Kernels))


@each_layer
@pytest.mark.parametrize("biased", [False, True])
@torch.inference_mode()
def test_a_layer_multiplies_like_a_plain_one_to_its_rounding(name: str, make: MakeLayer, biased: bool) -> None:
    plain, states = nn.Linear(64, 96, bias=biased), torch.randn(2, 5, 64)
    found, expected = make(plain.weight, plain.bias)(states), plain(states)
    assert (found.dtype, found.shape) == (torch.float32, expected.shape)
    assert ((found - expected).norm() / expected.norm()).item() < 1e-5


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
        atol = 1e-5 * float(among[row].abs().max())
        assert torch.allclose(layer(states[row : row + 1])[0], among[row], rtol=0.0, atol=atol)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("name", [name for name in HERE if name != "merged"])
def test_a_good_choice_is_accepted(model_type: str, name: Kernels) -> None:
    backbone = build_backbone(tiny_model(model_type, initializer_range=0.1), name)
    assert backbone.kernels == name
    assert backbone.kernels_description == describe_kernels(name, "float32")
    make = CHOICES[name].make_layer
    if make is not None:
        assert isinstance(make, type)
        assert isinstance(backbone.model.get_output_embeddings(), make)


@needs_packing
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
class TestKernelsWhoseRowsDependOnEachOther:
    def replace(self, name: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(module.CHOICES, name, replace(CHOICES[name], make_layer=SharedScale))

    def test_by_name_they_are_an_error(self, model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.replace("packed", monkeypatch)
        with pytest.raises(EntMTPError, match="'packed' are refused for lossless decoding: a token's logits depend on"):
            build_backbone(tiny_model(model_type), "packed")

    def test_auto_does_without_them_and_says_so(self, model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.replace("fused", monkeypatch)
        backbone = build_backbone(tiny_model(model_type))
        assert backbone.kernels == "packed"
        assert "a token's logits depend on the other tokens of a pass" in backbone.kernels_description
        assert not any(isinstance(layer, SharedScale) for layer in backbone.model.modules())


@needs_packing
def test_logits_far_from_the_models_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(weight: Weight, bias: torch.Tensor | None) -> PackedLinear:
        return PackedLinear(dequantized(weight) / 2, bias)

    monkeypatch.setitem(module.CHOICES, "packed", replace(CHOICES["packed"], make_layer=halved))
    with pytest.raises(EntMTPError, match="'packed' are refused for lossless decoding: the logits differ from"):
        build_backbone(tiny_model("llama"), "packed")


@needs_packing
def test_a_choice_that_raises_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(layer: PackedLinear, states: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such\ninstruction")

    monkeypatch.setattr(PackedLinear, "forward", raising)
    with pytest.raises(EntMTPError, match="a pass raised RuntimeError: no such instruction; use 'eager'"):
        build_backbone(tiny_model("llama"), "packed")


@pytest.mark.parametrize(
    ("kernels", "dtype", "device"),
    [
        ("packed", torch.float16, CPU),
        ("fused", torch.bfloat16, CPU),
        ("fused", torch.float32, CUDA),
        ("triton", torch.bfloat16, CPU),
    ],
)
def test_an_unsupported_choice_is_refused_with_its_reason(
    kernels: Kernels, dtype: torch.dtype, device: torch.device
) -> None:
    with pytest.raises(EntMTPError, match=rf"^kernels: '{kernels}' .* {dtype} on {device}; "):
        supported_kernels(kernels, dtype, device)


def test_auto_takes_the_fastest_first() -> None:
    assert supported_kernels("auto", torch.float32, CPU) == [
        name for name in ("fused", "packed", "eager") if name in HERE
    ]
    for dtype in (torch.float32, torch.bfloat16):
        assert supported_kernels("auto", dtype, CUDA)[-2:] == ["merged", "eager"]
    assert "merged" not in supported_kernels("auto", torch.float16, CPU)
    assert supported_kernels("merged", torch.float32, CPU) == ["merged"]


class TestTriton:
    """Requirements of Triton's kernels on GPU and package, without either."""

    @pytest.fixture(autouse=True)
    def gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(support, "find_spec", lambda name: object())
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_on_a_gpu_they_are_tried_first(self, dtype: torch.dtype) -> None:
        assert supported_kernels("auto", dtype, CUDA) == ["triton", "merged", "eager"]

    def test_on_a_cpu_they_are_interpreted_only_by_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        assert supported_kernels("triton", torch.float32, CPU) == ["triton"]
        assert "triton" not in supported_kernels("auto", torch.float32, CPU)

    def test_on_a_cpu_they_need_the_interpreter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        assert "needs an NVIDIA GPU; the weights are torch.float32 on cpu" in self.refusal(torch.float32, CPU)

    def test_they_need_the_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(support, "find_spec", lambda name: None)
        assert "needs the package triton, which comes with PyTorch's builds for CUDA" in self.refusal()

    def test_they_need_matrix_units_for_bfloat16(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        assert "needs a GPU of compute capability 8.0; cuda has 7.5" in self.refusal()

    def test_they_need_a_gpu_that_pytorch_sees(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert "needs an NVIDIA GPU; PyTorch sees none" in self.refusal()

    def test_they_need_a_gpu_of_nvidia(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.version, "hip", "6.0")
        assert "needs an NVIDIA GPU; cuda is another" in self.refusal()

    def test_they_need_weights_of_a_type_that_they_read(self) -> None:
        assert "needs weights in float32, bfloat16 or float16; these are torch.float64" in self.refusal(torch.float64)

    @staticmethod
    def refusal(dtype: torch.dtype = torch.bfloat16, device: torch.device = CUDA) -> str:
        with pytest.raises(EntMTPError, match=r"^kernels: 'triton' needs .*; use 'auto'$") as refused:
            supported_kernels("triton", dtype, device)
        assert "triton" not in supported_kernels("auto", dtype, device)
        return str(refused.value)


def test_auto_does_without_kernels_that_cannot_run_the_model_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(transformers_build, "supported_kernels", lambda *_: ["triton", "eager"])
    backbone = build_backbone(tiny_model("gpt2"))
    assert backbone.kernels == "eager"
    assert backbone.kernels_description == (
        "eager float32 (PyTorch); kernels: 'triton' can't run a GPT2Model; use 'eager'"
    )


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(EntMTPError, match=r"^kernels: 'fast' "):
        parse_kernels("fast")
