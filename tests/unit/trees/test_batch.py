import torch
from hypothesis import given
from hypothesis import strategies as st

from entmtp.trees.batch import FILLED_SIZES, TreeBatch, TreeShape, filled_size, rounded_width
from entmtp.trees.topology import Topology
from tests.helpers.tiny_models import topologies


@given(st.lists(topologies(), min_size=1, max_size=4), st.booleans(), st.integers(0, 3))
def test_each_row_is_its_topology_and_padding_is_inert(trees: list[Topology], rounded: bool, idle: int) -> None:
    batch = TreeBatch.of(trees, rounded=rounded, rows=len(trees) + idle)

    assert len(batch.real) == len(trees) + (idle if rounded else 0)
    assert not batch.real[len(trees) :].any()
    assert not batch.ancestors[len(trees) :].any()
    assert batch.width >= 1 + max(tree.nodes for tree in trees)
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


@st.composite
def wide_topologies(draw: st.DrawFn) -> Topology:
    """Trees of up to 200 nodes, so that their bits need up to four words."""
    count, generator = draw(st.integers(0, 200)), draw(st.randoms(use_true_random=False))
    parents = [generator.randrange(2**30) for _ in range(count)]
    paths: list[tuple[int, ...]] = [()]
    children: dict[tuple[int, ...], int] = {}
    for number in parents:
        parent = paths[number % len(paths)]
        children[parent] = rank = children.get(parent, -1) + 1
        paths.append((*parent, rank))
    return Topology.of(paths[1:]) if paths[1:] else Topology.root_only()


@given(st.lists(wide_topologies(), min_size=1, max_size=3), st.booleans(), st.integers(0, 2))
def test_bits_of_a_node_are_its_row_of_the_matrix(trees: list[Topology], rounded: bool, idle: int) -> None:
    batch = TreeBatch.of(trees, rounded=rounded, rows=len(trees) + idle)
    words = batch.ancestor_bits
    assert words.shape == (batch.shape.batch_rows, batch.width, -(-batch.width // 64))
    for row, tree in enumerate(trees):
        for node in range(tree.nodes + 1):
            number = sum((word % 2**64) << 64 * at for at, word in enumerate(words[row, node].tolist()))
            assert number == tree.ancestor_bits[node]
            assert [at for at in range(batch.width) if number >> at & 1] == list(tree.lineages[node])
        assert torch.equal(batch.ancestors[row, : tree.nodes + 1, : tree.nodes + 1], tree.ancestors)
        assert batch.ancestors[row].sum() == tree.ancestors.sum()
        assert not words[row, tree.nodes + 1 :].any()
    assert not words[len(trees) :].any()


def test_a_tree_of_64_nodes_sends_one_word_for_each() -> None:
    batch = TreeBatch.of([Topology.of([(rank,) for rank in range(63)])], rounded=True)
    assert batch.nodes.shape == (6 * 64,)
    assert int(batch.ancestor_bits[0, 63, 0]) == -(2**63) + 1, "the last bit is the sign's"


@given(st.lists(topologies(), min_size=1, max_size=4), st.booleans())
def test_the_parent_of_every_child_is_an_internal_node_of_the_level_above(trees: list[Topology], rounded: bool) -> None:
    batch = TreeBatch.of(trees, rounded=rounded)
    for level in range(batch.max_depth):
        request, node = batch.internal_nodes(level)
        parents = list(zip(request.tolist(), node.tolist(), strict=True))
        assert len(parents) == batch.shape.parents[level]
        expected = [
            (row, at) for row, tree in enumerate(trees) if tree.max_depth > level for at in tree.internal_nodes[level]
        ]
        assert parents == expected + expected[-1:] * (len(parents) - len(expected))
        children = (batch.depth == level + 1).nonzero().tolist()
        for row, child in children:
            assert parents[batch.parent_index[row, child]] == (row, batch.parent[row, child])
        ranks = [int(batch.rank[row, child]) for row, child in children]
        assert max(ranks) < batch.shape.ranks[level]
        assert rounded or batch.shape.ranks[level] == 1 + max(ranks)


@given(st.lists(topologies(), min_size=1, max_size=4))
def test_the_smallest_shape_has_no_spare_nodes(trees: list[Topology]) -> None:
    shape = TreeShape.of(trees)
    assert shape.width == 1 + max(tree.nodes for tree in trees)
    assert shape.padded == any(tree.nodes + 1 < shape.width for tree in trees)


@given(st.lists(topologies(), min_size=1, max_size=4))
def test_rounded_shapes_are_few_and_fit_the_smallest(trees: list[Topology]) -> None:
    smallest, rounded = TreeShape.of(trees), TreeShape.of(trees).rounded(len(trees))
    assert rounded.width in (1, 2, 4, 8, 16, 24, 32, 40, 48, 64, 128, 192, 256)
    assert smallest.width <= rounded.width < 2 * smallest.width
    assert len(rounded.parents) == len(rounded.ranks) == smallest.depth
    for small, large in zip(smallest.parents + smallest.ranks, rounded.parents + rounded.ranks, strict=True):
        assert small <= large
    # Rounded shapes differ only in batch rows, rounded width, depth and unusually high ranks.
    assert rounded.ranks == (16,) * smallest.depth


@given(st.integers(1, 300))
def test_widths_are_rounded_up_to_the_next_of_few(width: int) -> None:
    known = (1, 2, 4, 8, 16, 24, 32, 40, 48, 64, 128, 192, 256, 320)
    assert rounded_width(width) == min(each for each in known if each >= width)


def test_a_size_is_filled_up_to_its_width() -> None:
    assert FILLED_SIZES == (0, 1, 3, 7, 15, 23, 31, 39, 47, 63)
    assert [filled_size(nodes) for nodes in (0, 2, 8, 16, 32, 63, 64)] == [0, 3, 15, 23, 39, 63, 127]


def test_the_same_trees_are_the_same_batch() -> None:
    trees = [Topology.of([(0,), (1,)]), Topology.root_only()]
    assert TreeBatch.of(trees) is TreeBatch.of([Topology.of([(1,), (0,)]), Topology.root_only()])
