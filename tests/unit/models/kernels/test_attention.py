from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.cache import TreeCache
from entmtp.models.kernels import compiled
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Topology
from tests.helpers.tiny_models import TREES, random_tokens, tiny_model

pytestmark = pytest.mark.skipif(compiled.unsupported_reason() is not None, reason="no C++ compiler")

PART = 128
"""Positions of a part of a text, as in attention.hpp."""
ROOM: dict[str, Any] = {"max_position_embeddings": 512}
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("llama", ROOM),
    ("llama", ROOM | {"hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 1, "head_dim": 10}),
    ("llama", ROOM | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 80}),
    ("mistral", ROOM | {"sliding_window": 150}),
    ("mistral", ROOM | {"sliding_window": 7}),
]


def read(backbone: Backbone, lengths: Sequence[int]) -> TreeCache:
    """A cache whose slots hold texts of these lengths."""
    cache = backbone.new_cache(slots=len(lengths), capacity=450)
    for slot, length in enumerate(lengths):
        backbone.prefill(random_tokens(length), slot, cache)
    return cache


def verify(backbone: Backbone, cache: TreeCache, trees: Sequence[Topology]) -> list[torch.Tensor]:
    """Decoder states of the nodes of a tree after each slot's text."""
    batch = TreeBatch.of(list(trees), backbone.device, rounded=False)
    tokens = torch.arange(batch.width) + torch.tensor([[7 * row] for row in range(len(trees))])
    kv_range = cache.kv_range(range(len(trees)), batch.width, padded=batch.shape.padded)
    _, verified = backbone.verify(tokens, batch, kv_range, cache)
    return [states[: tree.nodes + 1] for states, tree in zip(verified.hidden, trees, strict=True)]


@pytest.mark.parametrize(("model_type", "changes"), MODELS, ids=str)
@pytest.mark.parametrize("lengths", [(PART - 2, 5, 2 * PART), (3 * PART - 1, 1, PART + 1)], ids=str)
@torch.inference_mode()
def test_texts_of_several_parts_are_attended_to_as_the_models_own_code_does(
    model_type: str, changes: dict[str, Any], lengths: Sequence[int]
) -> None:
    model, trees = tiny_model(model_type, **changes), [TREES["bushy"], TREES["root"], TREES["deep"]]
    backbones = [build_backbone(model, kernels) for kernels in ("fused", "eager")]
    found, expected = (verify(each, read(each, lengths), trees) for each in backbones)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("model_type", "changes"), MODELS, ids=str)
@pytest.mark.parametrize("length", range(PART - 4, PART + 2))
@torch.inference_mode()
def test_a_path_across_two_parts_has_the_same_bits_alone_and_in_a_tree(
    model_type: str, changes: dict[str, Any], length: int
) -> None:
    backbone, tree = build_backbone(tiny_model(model_type, **changes), "fused"), TREES["bushy"]
    (states,) = verify(backbone, read(backbone, [length]), [tree])
    for path in tree.paths:
        nodes = [0, *(1 + tree.paths.index(path[: depth + 1]) for depth in range(len(path)))]
        cache = read(backbone, [length])
        alone = []
        for node in nodes:
            alone.append(backbone.extend(torch.tensor([[node]]), [0], cache)[0, 0])
            cache.append([0], [1])
        assert torch.equal(torch.stack(alone), states[nodes])


@settings(max_examples=20)
@given(st.data(), st.integers(1, 3 * PART), st.integers(1, 4))
@torch.inference_mode()
def test_a_text_has_the_same_bits_however_it_is_cut_into_passes(data: st.DataObject, length: int, threads: int) -> None:
    backbone, tokens = build_backbone(tiny_model("llama", **ROOM), "fused"), random_tokens(length)
    expected = backbone.prefill(tokens, 0, backbone.new_cache(slots=1, capacity=450)).hidden
    cuts = [0, *sorted(data.draw(st.sets(st.integers(1, length - 1))) if length > 1 else []), length]
    torch.set_num_threads(threads)
    cache = backbone.new_cache(slots=1, capacity=450)
    found = [backbone.prefill(tokens[begin:end], 0, cache).hidden for begin, end in pairwise(cuts)]
    assert torch.equal(torch.cat(found), expected)


@torch.inference_mode()
def test_a_text_has_the_same_bits_alone_and_in_a_batch() -> None:
    backbone, lengths = build_backbone(tiny_model("llama", **ROOM), "fused"), [PART + 30, 3, 2 * PART + 9]
    among = verify(backbone, read(backbone, lengths), [TREES["bushy"]] * 3)
    (alone,) = verify(backbone, read(backbone, lengths[:1]), [TREES["bushy"]])
    assert torch.equal(among[0], alone)


@torch.inference_mode()
def test_a_tree_beyond_the_context_changes_nothing_before_its_end() -> None:
    backbone = build_backbone(tiny_model("llama", max_position_embeddings=160), "fused")
    tokens = random_tokens(300)
    cache = backbone.new_cache(slots=1, capacity=450)
    states = backbone.prefill(tokens[:155], 0, cache).hidden
    after = backbone.prefill(tokens[155:], 0, cache).hidden  # most of it has no position of its own
    whole = backbone.prefill(tokens[:160], 0, backbone.new_cache(slots=1, capacity=450)).hidden
    assert torch.equal(torch.cat([states, after[:5]]), whole)


@torch.inference_mode()
def test_a_row_outside_the_window_has_no_weight_at_all() -> None:
    backbone = build_backbone(tiny_model("mistral", **ROOM, sliding_window=7), "fused")
    (expected,) = verify(backbone, read(backbone, [60]), [TREES["bushy"]])
    cache = read(backbone, [60])
    for pool in cache.pools.values():
        pool[1::2, :, :, :40] = 3e38  # values
    assert torch.equal(verify(backbone, cache, [TREES["bushy"]])[0], expected)
