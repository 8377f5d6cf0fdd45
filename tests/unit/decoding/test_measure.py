from pathlib import Path

import pytest

from entmtp.decoding import measure
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.scheduling.cost import read_cost
from entmtp.trees.published import published_tree
from entmtp.trees.topology import Topology
from tests.tiny import VOCAB, random_heads, tiny_model


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(tiny_model("llama", num_hidden_layers=1))


@pytest.fixture(scope="module")
def heads(backbone: Backbone) -> DraftHeads:
    return random_heads("hydra", backbone, draft_vocab_size=VOCAB).attach(backbone)


def test_it_is_measured_once_then_read_back(backbone: Backbone, heads: DraftHeads, tmp_path: Path) -> None:
    said: list[str] = []
    first = measure.step_cost(backbone, heads, tmp_path, said.append)
    assert first.nodes == list(measure.NODES)
    assert len(first.narrow_draft_ms) == len(first.wide_draft_ms) == heads.num_heads
    assert first(published_tree()) > 0
    assert said == ["measuring the cost of a step with hydra heads on this machine (once, a few seconds)"]
    assert measure.step_cost(backbone, heads, tmp_path, said.append) == first
    assert len(said) == 1
    (path,) = (tmp_path / "costs").glob("*.json")
    assert read_cost(path) == first
    assert not list(tmp_path.rglob("*.unfinished"))


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 6])
def test_the_wide_trees_have_the_size_and_depth_they_stand_for(depth: int) -> None:
    tree = measure._wide(depth, 63)
    assert (tree.nodes, tree.max_depth) == (63, depth)
    assert tree == Topology.of(tree.paths)


def test_several_requests_are_measured_at_doubling_numbers_each_once(
    backbone: Backbone, heads: DraftHeads, tmp_path: Path
) -> None:
    said: list[str] = []
    cost = measure.machine_cost(backbone, heads, tmp_path, said.append, slots=3)
    assert sorted(cost.measured) == [1, 2, 3]
    assert cost.measured[1].nodes == list(measure.NODES)
    assert max(cost.measured[3].nodes) == cost.measured[3].wide_nodes == measure.MOST_NODES_OF_MANY
    assert "for 2 requests" in said[1]
    assert measure.machine_cost(backbone, heads, tmp_path, said.append, slots=2).measured[2] == cost.measured[2]
    assert len(said) == 3
