from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entmtp.errors import EntMTPError
from entmtp.trees.topology import Path, Shape, Topology
from tests.helpers.tiny_models import path_sets, topologies


@given(path_sets())
def test_order_is_canonical_and_independent_of_the_input(paths: list[Path]) -> None:
    topology = Topology.of(paths + paths[:1])

    assert topology == Topology.of(list(reversed(paths)))
    assert sorted(topology.paths) == sorted(paths)
    assert all((len(a), a) < (len(b), b) for a, b in pairwise(topology.paths))
    assert topology.nodes == len(paths)
    assert topology.name.startswith(f"n{len(paths)}-d{max(map(len, paths))}-w")


@given(topologies())
def test_node_tensors_describe_the_paths(topology: Topology) -> None:
    paths = [(), *topology.paths]

    assert [topology.index[path] for path in paths] == list(range(len(paths)))
    assert topology.max_depth == max(map(len, paths))
    assert [int(tensor[0]) for tensor in (topology.parent, topology.depth, topology.rank)] == [0, 0, 0]
    for node, path in enumerate(paths[1:], start=1):
        assert paths[topology.parent[node]] == path[:-1]
        assert topology.parent[node] < node
        assert topology.depth[node] == len(path)
        assert topology.rank[node] == path[-1]
    for depth, rank in enumerate(topology.max_rank, start=1):
        assert rank == topology.rank[topology.depth == depth].max()
    assert len(topology.max_rank) == topology.max_depth


@given(topologies())
def test_ancestor_mask_is_the_transitive_closure_of_the_parents(topology: Topology) -> None:
    mask = topology.ancestors
    for node, path in enumerate([(), *topology.paths]):
        expected = {topology.index[path[:depth]] for depth in range(len(path) + 1)}
        assert set(mask[node].nonzero()[:, 0].tolist()) == expected
    assert torch.equal(mask, (mask.float() @ mask.float()) > 0)
    assert torch.equal(mask.sum(1), topology.depth + 1)


@given(path_sets())
def test_a_name_contains_the_shape(paths: list[Path]) -> None:
    topology = Topology.of(paths)
    levels = [sum(len(path) == depth for path in topology.paths) for depth in range(1, topology.max_depth + 1)]
    assert Shape.parse(topology.name) == topology.shape == (topology.nodes, topology.max_depth, max(levels))
    assert Shape.parse(Topology.root_only().name) == Topology.root_only().shape == (0, 0, 0)
    with pytest.raises(ValueError, match="'n8' is not the name of a tree"):
        Shape.parse("n8")


def test_trees_of_one_shape_have_different_names() -> None:
    first, second = Topology.of([(0,), (1,), (0, 0)]), Topology.of([(0,), (1,), (1, 0)])
    assert first.name[:9] == second.name[:9] == "n3-d2-w2-"
    assert first.name != second.name
    assert first.name == Topology.of([(0, 0), (1,), (0,)]).name


@given(path_sets(), st.data())
def test_a_missing_parent_is_named(paths: list[Path], data: st.DataObject) -> None:
    parents = sorted({path[:-1] for path in paths if len(path) > 1})
    if not parents:
        return
    dropped = data.draw(st.sampled_from(parents))
    with pytest.raises(EntMTPError, match="lacks its parent") as raised:
        Topology.of([path for path in paths if path != dropped])
    assert str(dropped) in str(raised.value)


@given(path_sets(max_depth=4))
def test_a_path_deeper_than_the_heads_is_named(paths: list[Path]) -> None:
    topology = Topology.of(paths)
    topology.check_depth(topology.max_depth)
    with pytest.raises(EntMTPError) as raised:
        Topology.of(paths, max_depth=topology.max_depth - 1)
    deepest = [path for path in paths if len(path) == topology.max_depth]
    assert str(min(deepest)) in str(raised.value)
    assert f"only {topology.max_depth - 1} draft heads" in str(raised.value)


@pytest.mark.parametrize(
    ("paths", "named"),
    [
        ([], "has no paths"),
        ([[]], "path []"),
        ([[0], [0, -1]], "path [0, -1]"),
        ([[0], [1.5]], "path [1.5]"),
        ([["0"]], "path ['0']"),
        (["0"], "path '0'"),
        ([[True]], "path [True]"),
        ([0, 1], "path 0"),
        ([None], "path None"),
    ],
)
def test_malformed_paths_are_named_in_one_line(paths: Sequence[Any], named: str) -> None:
    with pytest.raises(EntMTPError) as raised:
        Topology.of(paths)
    assert named in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_empty_topology_is_plain_decoding() -> None:
    root = Topology.root_only()
    assert (root.nodes, root.max_depth, root.name, root.max_rank) == (0, 0, "n0", ())
    assert root.ancestors.tolist() == [[True]]
    root.check_depth(0)
