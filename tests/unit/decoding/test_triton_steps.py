"""Whole steps on Triton's kernels: the text is greedy decoding's, and captured parts serve every context."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("triton", reason="Triton is not installed")

from entmtp.decoding import acceptance
from entmtp.decoding.engine import Engine
from entmtp.decoding.graphs import Graphs
from entmtp.decoding.state import DecodingState
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.kernels.triton.ancestor_bits import MAX_NODES
from entmtp.policies.static import SequencePolicy
from entmtp.settings import EngineSettings
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Topology
from tests.helpers.arrivals import come_and_go
from tests.helpers.small_cases import SMALL_VOCAB, small_heads, small_prompt
from tests.helpers.taped_graphs import Taped
from tests.helpers.tiny_models import TREES, greedy, tiny_model
from tests.helpers.triton_kernels import DEVICE

NARROW = Topology.of([(0,), (1,), (0, 0)])


def triton_backbone(architecture: str) -> Backbone:
    """A backbone of one layer, as the interpreter is slow."""
    model = tiny_model(architecture, vocab_size=SMALL_VOCAB, num_hidden_layers=1)
    nn.Module.to(model, DEVICE)
    return build_backbone(model, "triton")


@pytest.fixture(scope="module")
def llama() -> Backbone:
    return triton_backbone("llama")


@pytest.mark.parametrize(
    ("architecture", "captured"),
    [
        ("llama", True),
        pytest.param("llama", False, marks=pytest.mark.slow),
        pytest.param("mistral", True, marks=pytest.mark.slow),
    ],
)
def test_requests_that_come_and_go_get_the_models_own_text(architecture: str, captured: bool) -> None:
    backbone = triton_backbone(architecture)
    policy = SequencePolicy([NARROW, TREES["root"]], 4)
    settings = EngineSettings.parse(slots=2, context=40, prefill_tokens=7)
    engine = Engine(backbone, small_heads("hydra", backbone), policy, settings)
    graphs = engine.runner.state.graphs = Graphs(Taped()) if captured else Graphs(None)
    prompts = [small_prompt(length, seed=length) for length in (2, 9, 4)]
    lengths = [9, 3, 6]
    for at, completion in come_and_go(engine, prompts, lengths, random.Random(0)).items():
        assert completion.tokens == greedy(backbone.model, prompts[at], lengths[at])
    assert graphs.disabled_reason is None
    assert (graphs.captures > 0) == captured


def test_one_captured_pass_serves_contexts_of_any_length(llama: Backbone) -> None:
    state = DecodingState(llama, None, slots=1, capacity=700)
    ranges = set()
    for length in (3, 300, 600):
        state.cache.truncate(0, length)
        ranges.add(state.cache.kv_range([0], 4, padded=True, rounded=True))
    assert len(ranges) == 1


@pytest.mark.parametrize(("width", "in_kernels"), [(MAX_NODES, True), (MAX_NODES + 1, False)])
def test_trees_wider_than_a_word_are_accepted_by_operators(
    width: int, in_kernels: bool, llama: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = DecodingState(llama, None, slots=1, capacity=90)
    tree = Topology.of([(rank,) for rank in range(width - 1)])
    batch = TreeBatch.of([tree], DEVICE, rounded=False)
    tokens = torch.arange(width, device=DEVICE)[None]
    logits = torch.zeros(1, width, 80, device=DEVICE)
    logits[:, :, 5] = 1.0  # the node 5 holds the root's choice
    calls = []
    in_operators = acceptance.accept_longest_path

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return in_operators(*arguments)

    monkeypatch.setattr(acceptance, "accept_longest_path", counted)
    accepted = state.accept_greedy(tokens, logits, torch.zeros(1, width, 3, device=DEVICE), batch)
    assert accepted.nodes.tolist() == [[0, 5]]
    assert (not calls) == in_kernels
