import pytest

from entmtp.trees.published import published_order, published_tree
from entmtp.trees.topology import Topology


def test_the_tree_has_the_published_shape() -> None:
    tree = published_tree()
    assert (tree.nodes, tree.max_depth, tree.name[:11]) == (63, 4, "n63-d4-w28-")
    by_depth = [sum(len(path) == depth for path in tree.paths) for depth in (1, 2, 3, 4)]
    assert by_depth == [10, 28, 23, 2]
    assert tree.max_rank == (9, 9, 9, 1)


def test_every_prefix_of_the_order_is_a_tree() -> None:
    order = published_order()
    assert len(set(order)) == 63
    for size in range(1, 64):
        assert Topology.of(order[:size]).nodes == size


@pytest.mark.parametrize(("heads", "nodes"), [(4, 63), (3, 61), (2, 38), (1, 10)])
def test_fewer_heads_keep_what_they_reach(heads: int, nodes: int) -> None:
    tree = published_tree(heads)
    assert (tree.nodes, tree.max_depth) == (nodes, heads)
