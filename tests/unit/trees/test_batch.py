import torch
from hypothesis import given
from hypothesis import strategies as st

from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Topology
from tests.tiny import topologies


@given(st.lists(topologies(), min_size=1, max_size=4))
def test_each_row_is_its_topology_and_padding_is_inert(trees: list[Topology]) -> None:
    batch = TreeBatch.of(trees)

    assert batch.width == 1 + max(tree.nodes for tree in trees)
    assert batch.max_depth == max(tree.max_depth for tree in trees)
    for row, tree in enumerate(trees):
        size = tree.nodes + 1
        assert batch.real[row].tolist() == [True] * size + [False] * (batch.width - size)
        for padded, own in ((batch.parent, tree.parent), (batch.depth, tree.depth), (batch.rank, tree.rank)):
            assert torch.equal(padded[row, :size], own)
            assert not padded[row, size:].any()
        assert torch.equal(batch.ancestors[row, :size, :size], tree.ancestors)
        assert not batch.ancestors[row, size:].any()
        assert not batch.ancestors[row, :, size:].any()


@given(topologies(), st.integers(1, 4))
def test_one_tree_for_all_equals_equal_trees(tree: Topology, rows: int) -> None:
    shared = TreeBatch.of([tree] * rows)
    separate = TreeBatch.of([Topology(tree.paths) for _ in range(rows)])
    for field in ("parent", "depth", "rank", "ancestors", "real"):
        assert torch.equal(getattr(shared, field), getattr(separate, field))


@given(st.lists(topologies(), min_size=1, max_size=4))
def test_expansions_visit_every_child_once_level_by_level(trees: list[Topology]) -> None:
    batch = TreeBatch.of(trees)
    seen: list[tuple[int, int]] = []
    assert len(batch.expansions) == batch.max_depth
    for depth, expansion in enumerate(batch.expansions):
        parents = list(zip(expansion.request.tolist(), expansion.node.tolist(), strict=True))
        assert len(set(parents)) == len(parents)
        assert all(batch.depth[parent] == depth for parent in parents)
        children = list(zip(expansion.child_request.tolist(), expansion.child.tolist(), strict=True))
        for child, at, rank in zip(children, expansion.child_of.tolist(), expansion.child_rank.tolist(), strict=True):
            assert parents[at] == (child[0], batch.parent[child])
            assert rank == batch.rank[child]
        assert expansion.ranks == 1 + expansion.child_rank.max()
        seen += children
    assert sorted(seen) == [(row, node) for row, tree in enumerate(trees) for node in range(1, tree.nodes + 1)]
