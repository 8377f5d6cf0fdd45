"""GGUF's blocks in the compiled kernels: the weights of the `gguf` package, and products as precise as float32's."""

import weakref

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from entmtp.models.kernels import block_formats, block_weight, compiled
from entmtp.models.kernels.block_weight import BlockLinear, BlockWeight, dequantize_layers
from entmtp.models.kernels.compiled import BLOCK_FORMATS
from entmtp.models.kernels.fused_linear import FusedLinear
from entmtp.models.kernels.packed_weight import merged, pack
from tests.helpers.gguf_files import random_blocks
from tests.helpers.precision import assert_precise

needs_compiler = pytest.mark.skipif(compiled.unsupported_reason() is not None, reason="no C++ compiler")
FORMATS = sorted(BLOCK_FORMATS)


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    """The kernels of all formats, compiled at once."""
    if compiled.unsupported_reason(*FORMATS) is None:
        compiled.library(FORMATS)


def reference(weight: BlockWeight) -> torch.Tensor:
    """The weight as the `gguf` package dequantizes it."""
    values: np.ndarray = quants.dequantize(weight.rows.numpy(), GGMLQuantizationType[weight.format])
    return torch.from_numpy(values.astype(np.float32))


@pytest.mark.parametrize("name", FORMATS)
@given(st.integers(1, 40), st.integers(1, 3), st.integers(0, 2**16))
def test_blocks_stand_for_the_weights_that_gguf_says(name: str, out: int, blocks: int, seed: int) -> None:
    weight = random_blocks(name, out, blocks * GGML_QUANT_SIZES[GGMLQuantizationType[name]][0], seed)
    expected = reference(weight)
    assert weight.shape == tuple(expected.shape)
    assert torch.equal(weight.dequantized(), expected)
    tokens = torch.randint(out, (2, 3))
    assert torch.equal(weight.embed(tokens), expected[tokens])


def test_types_and_their_sizes_are_those_of_gguf() -> None:
    ours = {(kind.name, kind.value): size for kind, size in block_formats.GGML_QUANT_SIZES.items()}
    assert ours == {(kind.name, kind.value): size for kind, size in GGML_QUANT_SIZES.items()}


@pytest.mark.parametrize("name", ["Q8_0", "Q4_1", "Q5_0"])
@given(st.integers(1, 300), st.integers(0, 2**16))
def test_values_are_rounded_to_the_bits_of_gguf(name: str, rows: int, seed: int) -> None:
    kind = GGMLQuantizationType[name]
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((rows, 96)).astype(np.float32) * generator.integers(0, 3, (rows, 1))
    values = values.astype(np.float32).round(seed % 4)  # also blocks of zeros, and halves
    found = block_formats.quantize(values, block_formats.GGMLQuantizationType[name])
    assert np.array_equal(found, quants.quantize(values, kind))
    assert np.array_equal(
        block_formats.dequantize(found, block_formats.GGMLQuantizationType[name]), quants.dequantize(found, kind)
    )


def test_parts_of_a_weight_are_rounded_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32)
    monkeypatch.setattr(block_formats, "_BLOCKS_AT_ONCE", 7)
    found = block_formats.quantize(values, block_formats.GGMLQuantizationType.Q8_0)
    assert np.array_equal(found, quants.quantize(values, GGMLQuantizationType.Q8_0))


@needs_compiler
@pytest.mark.parametrize("name", FORMATS)
@given(st.integers(1, 30), st.integers(1, 70), st.integers(1, 3), st.integers(0, 2**16))
@torch.inference_mode()
def test_a_product_with_blocks_is_that_of_their_weights(name: str, rows: int, out: int, blocks: int, seed: int) -> None:
    weight = random_blocks(name, out, blocks * GGML_QUANT_SIZES[GGMLQuantizationType[name]][0], seed)
    states = torch.randn(rows, weight.shape[1], generator=torch.Generator().manual_seed(seed))
    bias = torch.randn(out) if seed % 2 else None
    values = reference(weight).double()
    expected = states.double() @ values.T + (0 if bias is None else bias)
    allowed = 1e-6 * (states.double().abs() @ (values.abs() + values.abs().amax()).T + 1)
    assert ((FusedLinear(weight, bias)(states) - expected).abs() <= allowed).all()


@needs_compiler
@pytest.mark.parametrize("name", FORMATS)
@torch.inference_mode()
def test_a_product_with_blocks_is_as_precise_as_float32(name: str) -> None:
    assert_precise(name)


@needs_compiler
@pytest.mark.parametrize("name", FORMATS)
@torch.inference_mode()
def test_a_row_has_the_same_bits_alone_and_in_a_batch(name: str) -> None:
    layer, states = FusedLinear(random_blocks(name, 40, 512, seed=1), None), torch.randn(40, 512)
    alone = torch.cat([layer(row[None]) for row in states])
    assert torch.equal(alone, layer(states))


def test_weights_of_one_format_are_merged_and_others_stay_apart() -> None:
    one, other, third = (random_blocks(name, 4, 256, seed=2) for name in ("Q4_K", "Q4_K", "Q6_K"))
    (both,) = merged([one, other])
    assert torch.equal(both.dequantized(), torch.cat([one.dequantized(), other.dequantized()]))  # type: ignore[union-attr]
    assert merged([one, other, third]) == [one, other, third]


@needs_compiler
def test_a_packed_weight_takes_hardly_more_bytes_than_in_the_file() -> None:
    for name in FORMATS:
        weight = random_blocks(name, 64, 512, seed=3)
        assert 1 <= pack(weight).data.numel() / weight.rows.numel() < 1.03, name  # the K formats' scales become bytes


@needs_compiler
def test_a_weight_in_blocks_is_packed_once_and_not_kept() -> None:
    weight = random_blocks("Q4_1", 8, 32, seed=7)
    packed = pack(weight)
    assert pack(weight) is packed
    kept = weakref.ref(packed)
    del weight, packed
    assert kept() is None


def test_without_a_compiler_blocks_are_dequantized_by_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_blocks("Q5_K", 6, 512, seed=4)
    monkeypatch.setattr(compiled, "unsupported_reason", lambda: "needs a C++ compiler")
    assert torch.equal(weight.embed(torch.tensor([[5, 0]])), reference(weight)[torch.tensor([[5, 0]])])


@pytest.mark.parametrize("biased", [False, True])
def test_a_product_never_has_the_whole_of_a_large_weight_in_float32(
    biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks, sizes = random_blocks("Q8_0", 20, 64, seed=7), []

    def dequantized(weight: BlockWeight) -> torch.Tensor:
        sizes.append(weight.shape[0])
        return reference(weight)

    monkeypatch.setattr(block_weight, "DEQUANTIZED_ROWS", 8)
    monkeypatch.setattr(BlockWeight, "dequantized", dequantized)
    bias, states = torch.randn(20) if biased else None, torch.randn(2, 3, 64)
    found = BlockLinear(blocks, bias)(states)
    assert torch.allclose(found, nn.functional.linear(states, reference(blocks), bias), atol=1e-4)
    assert sizes == [8, 8, 4]


def test_dequantized_layers_are_pytorchs_own_and_stay_tied() -> None:
    tied, alone = random_blocks("Q4_0", 8, 32, seed=5), random_blocks("Q8_0", 8, 32, seed=6)
    model = nn.ModuleDict(
        {"one": BlockLinear(tied), "two": BlockLinear(tied), "three": BlockLinear(alone, torch.randn(8))}
    )
    states = torch.randn(3, 32)
    before = [model[name](states) for name in model]
    dequantize_layers(model)
    assert [type(model[name]) for name in model] == [nn.Linear] * 3
    assert model["one"].weight is model["two"].weight
    assert all(torch.equal(model[name](states), each) for name, each in zip(model, before, strict=True))
