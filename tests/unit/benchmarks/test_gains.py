"""Each variant switches off what its name says and nothing else; its times are not tested."""

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import gains
from benchmarks.timing import ladder_of
from entmtp.decoding.measure import StepBench
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.models.joint import JointLinear
from entmtp.models.packing import PackedLinear
from tests.tiny import random_heads, tiny_model


def kinds(module: torch.nn.Module) -> set[type]:
    return {type(layer) for layer in module.modules()} & {torch.nn.Linear, JointLinear, PackedLinear}


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Backbone, DraftHeads]]:
    monkeypatch.setattr(gains, "load_heads", lambda _, backbone: random_heads("hydra", backbone).attach(backbone))
    model = tiny_model("llama")
    return {name: build(model) for name, build in gains.on_cpu("hydra").items()}


def test_each_variant_lacks_one_thing(built: dict[str, Any]) -> None:
    packed, output = {JointLinear, PackedLinear}, {name: type(b.model.lm_head) for name, (b, _) in built.items()}
    layers = {name: kinds(backbone.decoder) for name, (backbone, _) in built.items()}
    attention = {name: backbone.model.config._attn_implementation for name, (backbone, _) in built.items()}
    assert layers.pop("packed layers (PyTorch's own)") == {torch.nn.Linear}
    assert layers.pop("joint products of siblings") == {PackedLinear}
    assert set(map(frozenset, layers.values())) == {frozenset(packed)}
    assert {name for name, kind in output.items() if kind is torch.nn.Linear} == {
        "packed layers (PyTorch's own)",
        "packed output layer",
    }
    assert attention.pop("packed grouped-query attention") == "sdpa"
    assert set(attention.values()) == {"entmtp_tree"}


def test_all_variants_write_the_same_and_the_heads_pack_or_not(built: dict[str, Any]) -> None:
    roots, packs = set(), {}
    for name, (backbone, heads) in built.items():
        bench = StepBench(backbone, heads, 1, 20, 15)
        bench.step(ladder_of(gains._tree(bench, 16)))
        roots.add(int(bench.state.root[0]))
        packs[name] = bool(heads._packed)
    assert len(roots) == 1
    assert not packs.pop("packed products of the heads")
    assert all(packs.values())


def test_rows_name_milliseconds_first_then_ratios(built: dict[str, Any]) -> None:
    benches = {name: StepBench(backbone, heads, 1, 20, 31) for name, (backbone, heads) in built.items()}
    first, *others = gains.gains(benches, repetitions=3)
    assert first[0] == gains.FULL
    assert all(str(cell).endswith(" ms") for cell in first[1:])
    assert [row[0] for row in others] == [name for name in built if name != gains.FULL]
    assert all("x [" in str(cell) for row in others for cell in row[1:])


def test_a_ratio_is_that_of_pairs() -> None:
    full = np.array([10.0, 20.0, 30.0])
    found = gains.cells({gains.FULL: full, "it": 1.5 * full}, "4 tokens")
    assert found == {gains.FULL: "20.0 ms", "it": "1.50x [1.50, 1.50]"}
