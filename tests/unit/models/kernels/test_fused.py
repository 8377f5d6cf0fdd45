import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType, quants
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.profiler import profile

from entmtp.errors import EntMTPError
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.kernels import compiled
from entmtp.models.kernels.block_weight import BlockWeight
from entmtp.models.kernels.fused_decoder import fused_decoder
from entmtp.models.kernels.fused_linear import DraftLinear, FusedLinear, Int8Linear
from entmtp.models.kernels.packed_linear import InferenceLinear
from entmtp.trees.batch import TreeBatch
from tests.helpers.tiny_models import TREES, greedy, random_tokens, tiny_model

pytestmark = pytest.mark.skipif(compiled.unsupported_reason() is not None, reason="no C++ compiler")
FUSED = ("llama", "mistral", "qwen2", "qwen3")


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 70), st.booleans(), st.integers(0, 2**16))
def test_a_fused_product_is_the_plain_one(rows: int, width: int, out: int, biased: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    states, weight = (torch.randn(size, width, generator=generator) for size in (rows, out))
    bias = torch.randn(out, generator=generator) if biased else None
    with torch.inference_mode():
        found = FusedLinear(weight, bias)(states[None])
    assert torch.allclose(found[0], nn.functional.linear(states, weight, bias), rtol=1e-5, atol=1e-4)


@given(st.integers(1, 70), st.integers(1, 3), st.integers(1, 70), st.booleans(), st.integers(0, 2**16))
def test_a_draft_product_is_that_of_the_weight_in_blocks_of_8_bits(
    rows: int, blocks: int, out: int, biased: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    states, weight = (torch.randn(size, 32 * blocks, generator=generator) for size in (rows, out))
    bias = torch.randn(out, generator=generator) if biased else None
    blocked = BlockWeight("Q8_0", torch.from_numpy(quants.quantize(weight.numpy(), GGMLQuantizationType.Q8_0)))
    with torch.inference_mode():
        found, expected = DraftLinear(weight, bias)(states[None]), Int8Linear(blocked, bias)(states[None])
    assert torch.equal(found, expected)
    error = (found[0] - nn.functional.linear(states, weight, bias)).abs()
    assert (error <= 0.01 * states.norm(dim=1)[:, None] * weight.norm(dim=1)).all()


@torch.inference_mode()
def test_a_draft_weight_whose_rows_are_no_whole_blocks_stays_as_it_is() -> None:
    weight, states = torch.randn(6, 24), torch.randn(3, 24)
    assert torch.equal(DraftLinear(weight, None)(states), FusedLinear(weight, None)(states))


@torch.inference_mode()
def test_a_weight_of_zeros_has_a_product_of_zeros_in_eight_bits() -> None:
    assert DraftLinear(torch.zeros(8, 32), None)(torch.randn(2, 32)).abs().max() == 0


@pytest.mark.parametrize("kind", [FusedLinear, DraftLinear])
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_a_row_has_the_same_bits_alone_and_in_a_batch(
    kind: Callable[..., InferenceLinear], rows: int, width: int, out: int
) -> None:
    layer, states = kind(torch.randn(out, width), torch.randn(out)), torch.randn(rows, width)
    with torch.inference_mode():
        among = layer(states)
        alone = torch.cat([layer(states[row : row + 1]) for row in range(rows)])
    assert torch.equal(alone, among)


def test_states_of_any_layout_are_read_right() -> None:
    layer, weight = FusedLinear(eye := torch.eye(6), None), eye
    states = torch.randn(6, 4).t()
    with torch.inference_mode():
        assert torch.equal(layer(states), states @ weight)


@pytest.mark.parametrize("model_type", FUSED)
def test_decoders_of_known_kinds_are_fused(model_type: str) -> None:
    backbone = build_backbone(tiny_model(model_type))
    assert backbone.kernels == "fused"
    assert backbone._fused_decoder is not None
    assert [type(layer).__name__ for layer in backbone.decoder.layers] == [  # type: ignore[union-attr]
        type(layer).__name__ for layer in tiny_model(model_type).model.layers
    ]


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("granite", {}),
        ("gpt2", {}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"mlp_bias": True}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    ],
)
def test_other_decoders_have_fused_products_only(model_type: str, changes: dict[str, Any]) -> None:
    backbone = build_backbone(tiny_model(model_type, **changes))
    assert backbone.kernels == "fused"
    assert backbone._fused_decoder is None
    assert any(isinstance(layer, FusedLinear) for layer in backbone.decoder.modules())
    assert greedy(backbone.model, random_tokens(6), 8) == greedy(tiny_model(model_type, **changes), random_tokens(6), 8)


SHAPES: list[dict[str, Any]] = [
    {},
    {"hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 1, "head_dim": 10},
    {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 34},
    {"hidden_size": 33, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 64, "intermediate_size": 37},
]


def rotary(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 100.0, **parameters}}


@pytest.mark.parametrize("part", ["layer", "decoder"])
def test_a_decoder_with_a_hook_is_run_by_its_own_code(part: str) -> None:
    model: Any = tiny_model("llama")
    hooked = model.model if part == "decoder" else model.model.layers[0]
    hooked.register_forward_pre_hook(lambda module, arguments: None)
    assert build_backbone(model)._fused_decoder is None


@pytest.mark.parametrize("changes", SHAPES, ids=str)
@pytest.mark.parametrize("model_type", FUSED)
@torch.inference_mode()
def test_a_fused_decoder_computes_for_a_batch_of_trees_what_the_decoder_does(
    model_type: str, changes: dict[str, Any]
) -> None:
    model = tiny_model(model_type, **(changes | ({"attention_bias": True} if model_type == "llama" else {})))
    trees = [TREES["bushy"], TREES["root"], TREES["deep"]]
    found, expected = (_states(build_backbone(model, kernels), trees) for kernels in ("fused", "eager"))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rope_type", ["default", "dynamic", "linear"])
@torch.inference_mode()
def test_positions_are_embedded_as_the_models_own_code_does(rope_type: str) -> None:
    model = tiny_model("llama", **rotary(rope_type=rope_type, factor=2.0), max_position_embeddings=48)
    trees = [TREES["bushy"], TREES["root"], TREES["deep"]]
    found, expected = (_states(build_backbone(model, kernels), trees) for kernels in ("fused", "eager"))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_the_profiler_names_the_calls() -> None:
    backbone = build_backbone(tiny_model("llama"))
    with profile() as profiler:
        _states(backbone, [TREES["root"]] * 3)
        backbone.logits(torch.zeros(1, backbone.hidden_size))
    assert {"entmtp::decode", "entmtp::linear"} <= {event.key for event in profiler.key_averages()}


def _states(backbone: Backbone, topologies: list[Any]) -> list[torch.Tensor]:
    """Decoder states of each tree's nodes after prompts of several lengths, whose logits are the output layer's."""
    cache = backbone.new_cache(slots=4, capacity=120)
    slots = (3, 0, 2)
    for slot, length in zip(slots, (23, 5, 40), strict=True):
        backbone.prefill(random_tokens(length), slot, cache)
    batch = TreeBatch.of(topologies, backbone.device, rounded=False)
    tokens = torch.arange(batch.width) + torch.tensor([[1], [20], [40]])
    kv_range = cache.kv_range(slots, batch.width, padded=batch.shape.padded)
    logits, verified = backbone.verify(tokens, batch, kv_range, cache)
    assert torch.equal(logits, backbone.logits(verified.hidden))
    return [states[: tree.nodes + 1] for states, tree in zip(verified.hidden, topologies, strict=True)]


@pytest.mark.parametrize("threads", [2, 3, 8])
@torch.inference_mode()
def test_states_have_the_same_bits_with_any_number_of_threads(threads: int) -> None:
    backbone, trees = build_backbone(tiny_model("llama", num_hidden_layers=4)), [TREES["bushy"]] * 3
    expected = torch.cat(_states(backbone, trees))
    torch.set_num_threads(threads)  # also more than there are cores, so that some are always late
    for _ in range(20):
        assert torch.equal(torch.cat(_states(backbone, trees)), expected)


def test_threads_that_do_not_come_are_not_waited_for() -> None:
    backbone, trees = build_backbone(tiny_model("llama")), [TREES["bushy"]] * 3
    openmp = compiled.library()

    @torch.inference_mode()
    def without_other_threads() -> None:
        torch.set_num_threads(2)
        before = openmp.omp_get_max_active_levels()
        openmp.omp_set_max_active_levels(0)
        _states(backbone, trees)
        openmp.omp_set_max_active_levels(before)

    thread = threading.Thread(target=without_other_threads, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()


@torch.inference_mode()
def test_a_node_has_the_same_bits_in_any_tree() -> None:
    backbone = build_backbone(tiny_model("llama"))
    alone, among = (_states(backbone, [tree] * 3) for tree in (TREES["root"], TREES["bushy"]))
    for one, other in zip(alone, among, strict=True):
        assert torch.equal(one[0], other[0])


def test_a_decoder_of_another_kind_is_not_fused() -> None:
    decoder = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2)])})
    assert fused_decoder(decoder, nn.Linear(2, 2), None, digits=0) is None


class TestCompiling:
    @pytest.fixture(autouse=True)
    def empty_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setenv("ENTMTP_CACHE", str(tmp_path))
        monkeypatch.setattr(compiled, "_loaded", {})
        compiled.unsupported_reason.cache_clear()
        yield
        compiled.unsupported_reason.cache_clear()

    def compiler(self, folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
        path = folder / "c++"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(shutil, "which", lambda name: str(path) if name == "c++" else None)

    def test_the_library_is_compiled_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compiled, "_FLAGS", [*compiled._FLAGS, "-O0"])  # a quarter of the time
        assert compiled.unsupported_reason() is None
        (made,) = (tmp_path / "kernels").glob("*.so")
        compiled._loaded.clear()
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
        compiled.library()
        assert [made] == list((tmp_path / "kernels").glob("*.so"))

    def test_without_a_compiler_the_next_best_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "which", lambda name: None)
        assert build_backbone(tiny_model("llama")).kernels == "packed"
        with pytest.raises(EntMTPError, match=r"kernels: 'fused' needs a C\+\+ compiler, such as g\+\+; use 'auto'"):
            build_backbone(tiny_model("llama"), "fused")

    def test_the_message_of_a_failing_compiler_is_reported(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.compiler(tmp_path, "echo no such flag >&2; exit 1", monkeypatch)
        with pytest.raises(EntMTPError, match=r"'fused' needs a C\+\+ compiler that works; .*c\+\+ says: no such flag"):
            build_backbone(tiny_model("llama"), "fused")
        assert not list((tmp_path / "kernels").glob("*.so"))

    def test_a_library_that_cannot_be_loaded_is_reported(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.compiler(tmp_path, 'for target; do :; done; echo nonsense > "$target"', monkeypatch)
        with pytest.raises(EntMTPError, match=r"kernels: 'fused' can't be loaded here: .*; use 'auto'"):
            build_backbone(tiny_model("llama"), "fused")

    def test_the_compiler_and_its_flags_are_part_of_the_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = compiled._identity("g++", ["-O3"])
        assert before != compiled._identity("clang++", ["-O3"])
        assert before != compiled._identity("g++", ["-O3", "-DX"])
