from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entmtp.decoding.acceptance import Accepted, accept_greedy
from entmtp.policies.signals import entropy
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Topology
from tests.helpers.tiny_models import topologies

VOCAB = 7


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
def verified(draw: st.DrawFn) -> tuple[list[Topology], torch.Tensor, torch.Tensor]:
    trees = draw(st.lists(topologies(max_rank=3), min_size=1, max_size=3))
    width = 1 + max(tree.nodes for tree in trees)
    seed = draw(st.integers(0, 10_000))
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(len(trees), width, dtype=torch.int64)
    for row, tree in enumerate(trees):
        shuffled = torch.randperm(VOCAB, generator=generator)
        # Siblings hold different tokens, as heads propose them.
        tokens[row, : tree.nodes + 1] = shuffled[(tree.rank + tree.parent) % VOCAB]
    return trees, tokens, torch.randn(len(trees), width, VOCAB, generator=generator)


@given(verified())
def test_it_keeps_the_path_on_which_every_token_is_the_models_choice(
    case: tuple[list[Topology], torch.Tensor, torch.Tensor],
) -> None:
    trees, tokens, logits = case
    accepted = accept_greedy(tokens, logits, TreeBatch.of(trees))
    for row, (tree, outcome) in enumerate(zip(trees, accepted.to_host(), strict=True)):
        best = logits[row].argmax(-1).tolist()
        nodes = by_hand(tokens[row].tolist(), best, tree)
        assert accepted_nodes(accepted)[row] == nodes
        assert outcome.tokens == tokens[row, nodes].tolist()
        assert outcome.node == nodes[-1]
        assert outcome.root == accepted.root[row] == best[nodes[-1]]
        assert outcome.entropy == pytest.approx(float(entropy(logits[row, nodes[-1]])), rel=1e-5)


def test_a_right_child_of_a_wrong_parent_is_not_accepted() -> None:
    tree = Topology.of([(0,), (1,), (0, 0), (1, 0)])
    tokens = torch.tensor([[5, 1, 2, 3, 4]])
    logits = torch.zeros(1, 5, VOCAB)
    for node, choice in enumerate([2, 3, 6, 0, 0]):
        logits[0, node, choice] = 1.0
    accepted = accept_greedy(tokens, logits, TreeBatch.of([tree]))
    assert (accepted_nodes(accepted), accepted.root.tolist()) == ([[0, 2]], [6])


def test_padding_is_never_accepted() -> None:
    # Padding holds token 0, which is what the model chooses everywhere.
    trees = [Topology.root_only(), Topology.of([(0,), (1,)])]
    tokens, logits = torch.zeros(2, 3, dtype=torch.int64), torch.eye(VOCAB)[torch.zeros(2, 3).long()]
    assert accepted_nodes(accept_greedy(tokens, logits, TreeBatch.of(trees))) == [[0], [0, 1]]
