"""Products of rows that are rounded to integers: exactly those of the rounded rows, in any batch and on any CPU."""

import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st

from entmtp.models.kernels import compiled
from entmtp.models.kernels.block_weight import BlockWeight
from entmtp.models.kernels.compiled import BLOCK_FORMATS
from entmtp.models.kernels.fused_linear import FusedLinear, Int8Linear, Int16Linear
from tests.helpers.cpu_instructions import needs_vnni
from tests.helpers.gguf_files import random_blocks
from tests.helpers.precision import assert_precise

pytestmark = pytest.mark.skipif(compiled.unsupported_reason() is not None, reason="no C++ compiler")
FORMATS = sorted(BLOCK_FORMATS)
LIMITS = {Int8Linear: 127.0, Int16Linear: 127.0 * 256}
"""The steps of a block's largest value."""
kinds = pytest.mark.parametrize("kind", [Int8Linear, pytest.param(Int16Linear, marks=needs_vnni)])
OTHER_INSTRUCTIONS = ["-mno-avx512f"], ["-mno-avx512f", "-mno-avxvnni"], ["-march=x86-64", "-Wno-psabi"]


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    """The kernels of all formats, compiled at once."""
    compiled.library(FORMATS)


def weight_of(name: str, out: int, blocks: int, seed: int) -> BlockWeight:
    return random_blocks(name, out, blocks * GGML_QUANT_SIZES[GGMLQuantizationType[name]][0], seed)


def rounded(states: torch.Tensor, block: int, limit: float) -> torch.Tensor:
    """The values that rounding leaves of ``states [rows, in]``, in float64."""
    blocks = states.unflatten(1, (-1, block))
    largest = blocks.abs().amax(-1, keepdim=True)
    # A tensor, as PyTorch divides a number by multiplying it with the reciprocal.
    steps = torch.where(largest > 0, torch.tensor(limit) / largest, torch.zeros_like(largest))
    return ((blocks * steps).round().double() * (largest / limit).double()).flatten(1)


def check_product(kind: type[FusedLinear], name: str, rows: int, out: int, blocks: int, seed: int) -> None:
    """A layer's product is that of the rounded states, up to the rounding of float32 sums."""
    weight = weight_of(name, out, blocks, seed)
    values = weight.dequantized().double()
    states = torch.randn(rows, weight.shape[1], generator=torch.Generator().manual_seed(seed))
    bias = torch.randn(out) if seed % 2 else None
    left = rounded(states, 16 if name == "Q6_K" else 32, LIMITS[kind])
    expected = left @ values.T + (0 if bias is None else bias)
    # Numbers without the offset are larger than the weights, and their products cancel.
    allowed = 1e-6 * (left.abs() @ (values.abs() + values.abs().amax()).T + 1)
    found = kind(weight, bias)(states).double()
    assert ((found - expected).abs() <= allowed).all()


@kinds
@pytest.mark.parametrize("name", FORMATS)
@given(st.integers(1, 30), st.integers(1, 70), st.integers(1, 3), st.integers(0, 2**16))
@torch.inference_mode()
def test_a_product_is_that_of_the_rounded_rows(
    kind: type[FusedLinear], name: str, rows: int, out: int, blocks: int, seed: int
) -> None:
    check_product(kind, name, rows, out, blocks, seed)


@pytest.fixture
def other_instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels compiled without some of this CPU's instructions."""
    monkeypatch.setattr(compiled, "_FLAGS", [*compiled._FLAGS, *request.param])
    monkeypatch.setattr(compiled, "_loaded", {})
    compiled.library(FORMATS)


@pytest.mark.slow
@pytest.mark.parametrize("other_instructions", OTHER_INSTRUCTIONS, indirect=True)
@torch.inference_mode()
def test_products_are_the_same_on_other_cpus(other_instructions: None) -> None:
    for name in FORMATS:
        for rows, out, blocks in (1, 5, 1), (3, 33, 2), (4, 70, 3), (13, 40, 2):
            check_product(Int8Linear, name, rows, out, blocks, seed=rows)
        assert_precise(name)


@kinds
@pytest.mark.parametrize("name", FORMATS)
@torch.inference_mode()
def test_a_row_has_the_same_bits_alone_and_in_a_batch(kind: type[FusedLinear], name: str) -> None:
    layer, states = kind(random_blocks(name, 40, 512, seed=1), None), torch.randn(40, 512)
    alone = torch.cat([layer(row[None]) for row in states])
    assert torch.equal(alone, layer(states))


@kinds
@torch.inference_mode()
def test_a_weight_in_float32_is_multiplied_by_the_rows_as_they_are(kind: type[FusedLinear]) -> None:
    weight, states = torch.randn(20, 64), torch.randn(3, 64)
    assert torch.equal(kind(weight, None)(states), FusedLinear(weight, None)(states))


@kinds
@pytest.mark.parametrize("name", FORMATS)
@torch.inference_mode()
def test_zeros_stay_zeros_and_what_is_not_finite_is_seen(kind: type[FusedLinear], name: str) -> None:
    layer, states = kind(random_blocks(name, 8, 512, seed=2), None), torch.zeros(4, 512)
    states[1, 300], states[2, 0], states[3, 511] = torch.nan, torch.inf, -torch.inf
    product = layer(states)
    assert (product[0] == 0).all()
    assert not product[1:].isfinite().any()
