"""Each variant switches off what its name says and nothing else; its times are not tested."""

import numpy as np
import pytest
import torch

from benchmarks import gains
from benchmarks.lib.timing import ladder_of
from entmtp.decoding.measure_cost import StepBench
from entmtp.heads.base import DraftHeads
from entmtp.models.kernels.fused_decoder import FusedDecoder
from entmtp.models.kernels.fused_linear import FusedLinear
from entmtp.models.kernels.merged_projections import MergedLinear
from entmtp.models.kernels.packed_linear import PackedLinear
from entmtp.models.transformers_backbone import TransformersBackbone
from entmtp.settings import Kernels
from tests.helpers.tiny_models import random_heads, tiny_model

LAYERS = torch.nn.Linear, MergedLinear, PackedLinear, FusedLinear, FusedDecoder


def kinds(module: torch.nn.Module) -> set[type]:
    return {type(layer) for layer in module.modules()} & set(LAYERS)


Built = dict[str, tuple[TransformersBackbone, DraftHeads]]


def build(kernels: Kernels) -> Built:
    model = tiny_model("llama")
    return {name: build(model) for name, build in gains.on_cpu("hydra", kernels).items()}


@pytest.fixture(autouse=True)
def heads_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gains, "load_heads", lambda _, backbone: random_heads("hydra", backbone).attach(backbone))


def test_each_variant_of_the_fused_system_lacks_one_thing() -> None:
    built = build("fused")
    found = {
        name: (kinds(backbone._fused_decoder or backbone.decoder), type(backbone.model.lm_head))
        for name, (backbone, _) in built.items()
    }
    full = {FusedDecoder}, FusedLinear
    assert found == {
        gains.FULL: full,
        "GGUF's blocks (float32 weights instead)": full,
        "fused layers": ({MergedLinear, FusedLinear}, FusedLinear),
        "fused products (oneDNN's instead)": ({MergedLinear, PackedLinear}, PackedLinear),
        "any of these (PyTorch's own)": ({torch.nn.Linear}, torch.nn.Linear),
        "the output layer's product": ({FusedDecoder}, torch.nn.Linear),
        "the heads' products": full,
    }


def test_each_variant_of_the_packed_system_lacks_one_thing() -> None:
    built = build("packed")
    packed = {MergedLinear, PackedLinear}
    found = {
        name: (kinds(backbone._fused_decoder or backbone.decoder), type(backbone.model.lm_head))
        for name, (backbone, _) in built.items()
    }
    attention = {name: backbone.model.config._attn_implementation for name, (backbone, _) in built.items()}
    assert found == {
        gains.FULL: (packed, PackedLinear),
        "merged products of siblings": ({PackedLinear}, PackedLinear),
        "packed grouped-query attention": (packed, PackedLinear),
        "any of these (PyTorch's own)": ({torch.nn.Linear}, torch.nn.Linear),
        "the output layer's product": (packed, torch.nn.Linear),
        "the heads' products": (packed, PackedLinear),
    }
    assert attention.pop("packed grouped-query attention") == "sdpa"
    assert set(attention.values()) == {"entmtp_tree"}


@pytest.mark.parametrize("kernels", ["fused", "packed"])
def test_all_variants_write_the_same_and_the_heads_have_layers_or_not(kernels: Kernels) -> None:
    roots, made = set(), {}
    for name, (backbone, heads) in build(kernels).items():
        bench = StepBench(backbone, heads, 1, 20, 15)
        bench.step(ladder_of(gains._tree(bench, 16)))
        roots.add(int(bench.state.root[0]))
        made[name] = bool(heads._inference_layers)
    assert len(roots) == 1
    assert {name for name, some in made.items() if not some} == {"the heads' products", "any of these (PyTorch's own)"}


def test_rows_name_milliseconds_first_then_ratios() -> None:
    built = build("packed")
    benches = {name: StepBench(backbone, heads, 1, 20, 31) for name, (backbone, heads) in built.items()}
    first, *others = gains.gains(benches, repetitions=3)
    assert first[0] == gains.FULL
    assert all(str(cell).endswith(" ms") for cell in first[1:])
    assert [row[0] for row in others] == [name for name in built if name != gains.FULL]
    assert all("x [" in str(cell) for row in others for cell in row[1:])


def test_a_ratio_is_that_of_pairs() -> None:
    full = np.array([10.0, 20.0, 30.0])
    found = gains.cells({gains.FULL: full, "it": 1.5 * full})
    assert found == {gains.FULL: "20.0 ms", "it": "1.50x [1.50, 1.50]"}
