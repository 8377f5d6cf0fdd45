import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entmtp.decoding.acceptance import Accepted, accept_greedy, accept_greedy_fused
from entmtp.decoding.graphs import Graphs
from entmtp.decoding.state import DecodingState
from entmtp.models.kernels import compiled
from entmtp.policies.signals import entropy
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Topology
from tests.helpers.small_cases import small_backbone
from tests.helpers.taped_graphs import Taped
from tests.helpers.tiny_models import topologies

VOCAB = 7

Accept = Callable[[torch.Tensor, torch.Tensor, TreeBatch], Accepted]


def fused(tokens: torch.Tensor, logits: torch.Tensor, trees: TreeBatch) -> Accepted:
    return accept_greedy_fused(tokens, logits, torch.zeros(*tokens.shape, 3), trees)


needs_compiler = pytest.mark.skipif(compiled.unsupported_reason() is not None, reason="no C++ compiler")
both_ways = pytest.mark.parametrize("accept", [accept_greedy, pytest.param(fused, marks=needs_compiler)])


def by_hand(tokens: Sequence[int], best: Sequence[int], tree: Topology) -> list[int]:
    """Walks down: the child that holds the model's own choice, as long as there is one."""
    nodes = [0]
    while True:
        at = nodes[-1]
        right = [node for node in range(1, tree.nodes + 1) if int(tree.parent[node]) == at and tokens[node] == best[at]]
        if not right:
            return nodes
        nodes.append(right[0])


def accepted_nodes(accepted: Accepted) -> list[list[int]]:
    return [row[:count] for row, count in zip(accepted.nodes.tolist(), accepted.counts.tolist(), strict=True)]


@st.composite
def verified(draw: st.DrawFn, vocabs: Sequence[int] = (VOCAB,)) -> tuple[list[Topology], torch.Tensor, torch.Tensor]:
    trees = draw(st.lists(topologies(max_rank=3), min_size=1, max_size=3))
    width = 1 + max(tree.nodes for tree in trees)
    seed = draw(st.integers(0, 10_000))
    generator, size = torch.Generator().manual_seed(seed), draw(st.sampled_from(vocabs))
    tokens = torch.zeros(len(trees), width, dtype=torch.int64)
    for row, tree in enumerate(trees):
        shuffled = torch.randperm(VOCAB, generator=generator)
        # Siblings hold different tokens, as heads propose them.
        tokens[row, : tree.nodes + 1] = shuffled[(tree.rank + tree.parent) % VOCAB]
    return trees, tokens, torch.randn(len(trees), width, size, generator=generator)


@both_ways
@given(case=verified())
def test_it_keeps_the_path_on_which_every_token_is_the_models_choice(
    accept: Accept, case: tuple[list[Topology], torch.Tensor, torch.Tensor]
) -> None:
    trees, tokens, logits = case
    accepted = accept(tokens, logits, TreeBatch.of(trees))
    for row, (tree, outcome) in enumerate(zip(trees, accepted.to_host(), strict=True)):
        best = logits[row].argmax(-1).tolist()
        nodes = by_hand(tokens[row].tolist(), best, tree)
        assert accepted_nodes(accepted)[row] == nodes
        assert outcome.tokens == tokens[row, nodes].tolist()
        assert outcome.node == nodes[-1]
        assert outcome.root == accepted.root[row] == best[nodes[-1]]
        assert outcome.entropy == pytest.approx(float(entropy(logits[row, nodes[-1]])), rel=1e-5)


@both_ways
def test_a_right_child_of_a_wrong_parent_is_not_accepted(accept: Accept) -> None:
    tree = Topology.of([(0,), (1,), (0, 0), (1, 0)])
    tokens = torch.tensor([[5, 1, 2, 3, 4]])
    logits = torch.zeros(1, 5, VOCAB)
    for node, choice in enumerate([2, 3, 6, 0, 0]):
        logits[0, node, choice] = 1.0
    accepted = accept(tokens, logits, TreeBatch.of([tree]))
    assert (accepted_nodes(accepted), accepted.root.tolist()) == ([[0, 2]], [6])


@both_ways
def test_padding_is_never_accepted(accept: Accept) -> None:
    # Padding holds token 0, which is what the model chooses everywhere.
    trees = [Topology.root_only(), Topology.of([(0,), (1,)])]
    tokens, logits = torch.zeros(2, 3, dtype=torch.int64), torch.eye(VOCAB)[torch.zeros(2, 3).long()]
    assert accepted_nodes(accept(tokens, logits, TreeBatch.of(trees))) == [[0], [0, 1]]


@needs_compiler
@given(verified((VOCAB, 16, 37, 100)), st.booleans())
def test_one_call_reports_what_the_operators_do(
    case: tuple[list[Topology], torch.Tensor, torch.Tensor], idle: bool
) -> None:
    trees, tokens, logits = case
    # Rounded, so that many logits are equal: the first one of them counts.
    logits = logits.round()
    batch = TreeBatch.of(trees, rounded=idle, rows=4)
    padding = 0, batch.width - tokens.shape[1], 0, batch.shape.batch_rows - len(tokens)
    tokens, logits = torch.nn.functional.pad(tokens, padding), torch.nn.functional.pad(logits, (0, 0, *padding))
    expected, found = (accept(tokens, logits, batch) for accept in (accept_greedy, fused))
    for name, one, other in zip(Accepted._fields, expected, found, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert name == "report" or torch.equal(one, other)
    for operators, call in zip(expected.to_host(), found.to_host(), strict=True):
        assert replace(call, entropy=0) == replace(operators, entropy=0)
        assert call.entropy == pytest.approx(operators.entropy, rel=1e-5, abs=1e-6)


@both_ways
@pytest.mark.parametrize("position", [3, 17])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_entropy_of_logits_that_are_not_finite_is_not_a_number(accept: Accept, value: float, position: int) -> None:
    logits = torch.randn(2, 1, 18)
    logits[0, 0, position] = value
    first, second = accept(torch.zeros(2, 1).long(), logits, TreeBatch.of([Topology.root_only()] * 2)).to_host()
    assert math.isnan(first.entropy)
    assert 0 <= first.root < 18
    assert second.entropy == pytest.approx(float(entropy(logits[1, 0])), rel=1e-5)


@needs_compiler
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_call_reports_states_that_are_not_finite(value: float) -> None:
    batch = TreeBatch.of([Topology.of([(0,), (1,)])] * 2)
    states = torch.randn(2, 3, 5)
    states[1, 2, 4] = value
    accepted = accept_greedy_fused(torch.zeros(2, 3).long(), torch.randn(2, 3, VOCAB), states, batch)
    assert [outcome.finite for outcome in accepted.to_host()] == [True, False]


@needs_compiler
def test_steps_accept_in_one_call_where_kernels_are_fused_and_nothing_is_captured() -> None:
    plain, fused = (DecodingState(small_backbone(kernels=kernels), None, 1, 64) for kernels in ("eager", "fused"))
    assert (plain.is_fused, fused.is_fused) == (False, True)
    fused.graphs = Graphs(Taped())
    assert not fused.is_fused
