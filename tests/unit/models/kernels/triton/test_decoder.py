"""The whole decoder in Triton's kernels: its states are the model's own, its weights the model's slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("triton", reason="Triton is not installed")

from entmtp.errors import EntMTPError
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.kernels.triton.ancestor_bits import MAX_NODES
from entmtp.models.kernels.triton.decoder import TritonDecoder
from entmtp.models.kernels.triton.move_rows import move_rows
from entmtp.models.transformers_backbone import TransformersBackbone
from entmtp.settings import Kernels
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Topology
from tests.helpers.tiny_models import TREES, WINDOW, commit, random_tokens, tiny_model
from tests.helpers.triton_kernels import DEVICE

KINDS = ("llama", "mistral", "qwen2", "qwen3")
SHAPES: list[dict[str, Any]] = [
    {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 34},
    {},
    {"hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 1, "head_dim": 10},
    {"hidden_size": 33, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 64, "intermediate_size": 37},
]
CASES = [
    # In the interpreter a case takes seconds: every kind and every shape once, the rest only with time.
    pytest.param(kind, shape, marks=[] if number == at else pytest.mark.slow, id=f"{kind}-{at}")
    for number, kind in enumerate(KINDS)
    for at, shape in enumerate(SHAPES)
]
LONGER_THAN_THE_WINDOW = Topology.of([(0,) * depth for depth in range(1, WINDOW + 2)])


def on_device(model_type: str, **changes: Any) -> Any:
    model = tiny_model(model_type, **changes)
    nn.Module.to(model, DEVICE)
    return model


@torch.inference_mode()
def computed(
    backbone: Backbone, steps: list[list[Topology]], lengths: Sequence[int], features: Sequence[int]
) -> list[torch.Tensor]:
    """Logits, states and features of each tree's nodes, over steps that commit a path of each tree.

    Prompts have several lengths.
    """
    cache = backbone.new_cache(slots=4, capacity=200)
    slots, found = (3, 0, 2), []
    for slot, length in zip(slots, lengths, strict=True):
        states = backbone.prefill(random_tokens(length), slot, cache, features)
        found += [states.hidden, states.features]
    for number, trees in enumerate(steps):
        batch = TreeBatch.of(trees, backbone.device, rounded=False)
        tokens = torch.arange(batch.width) + torch.tensor([[1], [20], [40]]) + number
        kv_range = cache.kv_range(slots, batch.width, padded=batch.shape.padded)
        logits, states = backbone.verify(tokens.to(backbone.device), batch, kv_range, cache, features)
        for row, tree in enumerate(trees):
            found += [each[row, : tree.nodes + 1] for each in (logits, states.hidden, states.features)]
        commit(cache, [[0, *[node for node, path in enumerate(tree.paths, 1) if set(path) == {0}]] for tree in trees])
    return found


def assert_same(
    model: Any, steps: list[list[Topology]], lengths: Sequence[int] = (11, 3, 1), features: Sequence[int] = ()
) -> None:
    names: list[Kernels] = ["triton", "eager"]
    triton, eager = (computed(build_backbone(model, kernels), steps, lengths, features) for kernels in names)
    for found, expected in zip(triton, eager, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


STEPS = [
    [TREES["bushy"], TREES["root"], LONGER_THAN_THE_WINDOW],
    [TREES["root"], TREES["wide"], TREES["chain"]],
    [TREES["root"], TREES["root"], TREES["root"]],
]


@pytest.mark.parametrize(("model_type", "changes"), CASES)
def test_a_batch_of_trees_has_the_models_own_states(model_type: str, changes: dict[str, Any]) -> None:
    changes = changes | ({"attention_bias": True, "mlp_bias": True} if model_type == "llama" else {})
    assert_same(on_device(model_type, **changes), STEPS[:2])


def test_windows_of_some_layers_and_many_steps() -> None:
    changes = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
    assert_same(on_device("qwen3", **changes), STEPS)


def test_a_pass_wider_than_a_word_runs_in_the_models_own_layers() -> None:
    assert_same(on_device("llama"), STEPS[2:], lengths=(1, MAX_NODES + 6, 1), features=(1,))


@pytest.mark.parametrize("features", [(0,), (1, 0), (1, 1)], ids=str)
def test_features_are_the_states_that_enter_the_layers(features: tuple[int, ...]) -> None:
    assert_same(on_device("llama"), STEPS[1:2], (3, 1, 1), features)


@pytest.mark.parametrize("rope_type", ["dynamic", "linear"])
def test_positions_are_embedded_as_the_models_own_code_does(rope_type: str) -> None:
    rope = {"rope_theta": 100.0, "rope_type": rope_type, "factor": 2.0}
    assert_same(on_device("llama", rope_parameters=rope, max_position_embeddings=48), STEPS[1:2])


def test_the_models_own_layers_keep_slices_of_the_merged_weights() -> None:
    model = on_device("qwen2")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    build_backbone(model, "triton")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.is_contiguous(), name
    for layer in model.model.layers:
        memory = [layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight, layer.self_attn.v_proj.weight]
        assert len({weight.untyped_storage().data_ptr() for weight in memory}) == 1
        gates, ups = layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight
        assert gates.untyped_storage().data_ptr() == ups.untyped_storage().data_ptr()


def test_the_choice_runs_decoder_and_moves() -> None:
    backbone = build_backbone(on_device("llama"), "triton")
    assert isinstance(backbone, TransformersBackbone)
    assert isinstance(backbone._triton_decoder, TritonDecoder)
    assert backbone.kernels == "triton"
    assert backbone.kernels_description == "triton float32 (for this GPU)"
    assert backbone.new_cache(1, 9)._move is move_rows


def test_captured_passes_read_whole_slots_up_to_the_width_of_a_word() -> None:
    cache = build_backbone(on_device("llama"), "triton").new_cache(slots=2, capacity=900)
    for length in (3, 700):
        cache.truncate(0, length)
        assert cache.kv_range([0], MAX_NODES, padded=True, rounded=True).last == 901
    cache.truncate(0, 3)
    assert cache.kv_range([0], MAX_NODES + 1, padded=True, rounded=True).last == 256


def _hooked() -> Any:
    model = on_device("llama")
    model.model.layers[1].register_forward_pre_hook(lambda module, arguments: None)
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: on_device("gpt2"), "can't run a GPT2Model"),
        (lambda: on_device("granite"), "can't run a GraniteModel"),
        (lambda: on_device("llama", hidden_act="gelu"), "can't run the activation GELUActivation"),
        (_hooked, "can't run a LlamaDecoderLayer whose code was changed, or which has hooks"),
    ],
)
def test_other_models_are_refused_by_name(make: Any, reason: str) -> None:
    with pytest.raises(EntMTPError, match=f"^kernels: 'triton' {reason}; use 'eager'$"):
        build_backbone(make(), "triton")
