from pathlib import Path
from typing import Any

import pytest

from entmtp.decoding import measure_cost
from entmtp.decoding.graphs import Graphs
from entmtp.decoding.outputs import StepRecord
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.policies.cost_cache import read_cost
from entmtp.policies.online_cost import OnlineStepCost
from entmtp.policies.signals import Signals
from entmtp.policies.static import StaticPolicy
from entmtp.policies.step_cost import CostTable
from entmtp.trees.published import published_tree
from entmtp.trees.topology import Topology
from tests.helpers.native_models import mtp_model, native_heads
from tests.helpers.simulated_machine import step_cost
from tests.helpers.taped_graphs import Taped
from tests.helpers.tiny_models import VOCAB, random_heads, tiny_model


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build_backbone(tiny_model("llama", num_hidden_layers=1))


@pytest.fixture(scope="module")
def heads(backbone: Backbone) -> DraftHeads:
    return random_heads("hydra", backbone, draft_vocab_size=VOCAB).attach(backbone)


@pytest.fixture(autouse=True)
def _few_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_cost, "_REPETITIONS", 2)


def test_it_is_measured_once_then_read_back(
    backbone: Backbone, heads: DraftHeads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_cost, "WIDE_SPREAD", 1e9)
    said: list[str] = []
    first = measure_cost.step_cost(backbone, heads, tmp_path, said.append)
    assert first.contexts == [64], "the model has a context of 128"
    assert first.at(64).nodes == list(measure_cost.NODES)
    assert len(first.at(64).narrow_draft_ms) == len(first.at(64).wide_draft_ms) == heads.num_heads
    assert first(published_tree()) > 0
    assert said == ["measuring the cost of a step with hydra heads on this machine (once, under a minute)"]
    assert measure_cost.step_cost(backbone, heads, tmp_path, said.append) == first
    assert len(said) == 1
    (path,) = (tmp_path / "costs").glob("*.json")
    assert read_cost(path, pytest.fail) == first
    assert not list(tmp_path.rglob("*.unfinished"))


@pytest.mark.parametrize("kind", ["hydra", "native"])
def test_longer_contexts_are_measured_with_a_few_trees_where_the_model_reaches_so_far(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_cost, "WIDE_SPREAD", 1e9)
    model = mtp_model("mellum", vocab_size=VOCAB) if kind == "native" else tiny_model("llama", num_hidden_layers=1)
    model.config.max_position_embeddings = 1024
    long = build_backbone(model)
    heads = native_heads(long) if kind == "native" else random_heads(kind, long, draft_vocab_size=VOCAB).attach(long)
    near = measure_cost.step_cost(long, heads, tmp_path, print, context=511)
    assert near.contexts == [64]
    far = measure_cost.step_cost(long, heads, tmp_path, print)
    assert far.contexts == [64, 512], "the file reached less far, so all is measured again"
    assert measure_cost.step_cost(long, heads, tmp_path, pytest.fail, context=511) == far
    short, longer = far.costs
    assert longer.nodes == short.nodes
    assert all(more >= ms for ms, more in zip(short.verify_ms, longer.verify_ms, strict=True))
    if kind == "hydra":
        assert longer.narrow_draft_ms == short.narrow_draft_ms, "its heads read no context"


@pytest.mark.parametrize(
    ("longest", "batch", "contexts"),
    [(100, 1, [64]), (2000, 1, [64, 512]), (9000, 1, [64, 512, 2048]), (100, 2, [64]), (9000, 2, [64, 2048])],
)
def test_contexts_reach_as_far_as_texts(longest: int, batch: int, contexts: list[int]) -> None:
    assert measure_cost._contexts(longest, batch) == contexts


def took(ms: float) -> StepRecord:
    return StepRecord(0, Topology.root_only(), (), Signals(0, 0.0, 0.0, 0.0), 0.0, ms, 0.0, 0.0, 0.0, 0, True)


def test_spread_is_what_repetitions_differ_by_when_a_round_that_is_slow_as_a_whole_is_taken_out() -> None:
    rounds = (1.0, 1.5, 1.0, 3.0, 1.0)
    steady = {size: [took(size * slow) for slow in rounds] for size in (10, 20, 30)}
    assert measure_cost.spread(steady) == pytest.approx(0, abs=1e-9)
    single = {size: [took(10 * (1 + 0.5 * ((size + at) % 2))) for at in range(5)] for size in range(6)}
    assert measure_cost.spread(single) > 0.2


@pytest.mark.parametrize(("spreads", "chosen", "lines"), [((0.1,), 0.1, 0), ((0.5, 0.2), 0.2, 0), ((0.5, 0.9), 0.5, 1)])
def test_a_disturbed_measurement_is_taken_once_more_and_one_line_says_if_it_stays_so(
    spreads: tuple[float, ...], chosen: float, lines: int
) -> None:
    tables = iter([CostTable(contexts=[160], costs=[step_cost()], spread=spread) for spread in spreads])
    said: list[str] = []
    assert measure_cost._measure_steadily(lambda: next(tables), said.append).spread == chosen
    assert next(tables, None) is None
    assert len(said) == lines
    assert all("on a busy machine: spread of 50%" in line for line in said)


def test_what_is_not_measured_at_a_longer_context_grows_as_its_neighbours_do() -> None:
    def parts(verify: float, draft: float) -> dict[str, float]:
        return {"policy": 0.0, "draft": draft, "verify": verify, "accept": 0.0, "compact": 0.0}

    ms = {(64, "verify", nodes): parts(10.0 + nodes, 9.0) for nodes in (0, 2, 4)}
    ms |= {(64, kind, depth): parts(9.0, depth) for kind in ("narrow", "wide") for depth in (1, 3)}
    ms |= {(512, "verify", 0): parts(11.0, 9.0), (512, "verify", 4): parts(20.0, 9.0)}
    ms |= {(512, "narrow", 1): parts(9.0, 2.0), (512, "narrow", 3): parts(9.0, 6.0)}
    ms |= {(2048, "verify", 0): parts(10.5, 9.0), (2048, "verify", 4): parts(21.0, 9.0)}
    costs = measure_cost._step_costs(ms, (64, 512, 2048), (0, 2, 4), 3, 16, "test")
    assert [cost.verify_ms for cost in costs] == [[10, 12, 14], [11, 15.5, 20], [11, 16, 21]]
    assert [cost.narrow_draft_ms for cost in costs] == [[1, 2, 3], [2, 4, 6], [2, 4, 6]]
    assert [cost.wide_draft_ms for cost in costs] == [[1, 2, 3]] * 3


def test_a_step_after_fewer_tokens_reads_no_more_of_the_cache(backbone: Backbone, heads: DraftHeads) -> None:
    bench = measure_cost.StepBench(backbone, heads, batch=2, context=100, max_nodes=4)
    pool = next(iter(bench.state.cache.pools.values()))
    assert pool[:, :, :, 65:101].equal(pool[:, :, :, 1:37]), "the text goes on from its beginning"
    assert pool[:, :, :, 1:101].abs().amin(dim=(0, 1, 2, 4)).gt(0).all()
    policy = StaticPolicy(Topology.of([(0,), (1,)]), entropy_window=8)
    assert [bench.step(policy, context).signals.context for context in (64, 100)] == [64, 100]
    assert bench.step(policy).signals.context == 100
    assert bench.state.cache.lengths == [100, 100]


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 6])
def test_the_wide_trees_have_the_size_and_depth_they_stand_for(depth: int) -> None:
    tree = measure_cost._wide_tree(depth, 63)
    assert (tree.nodes, tree.max_depth) == (63, depth)
    assert tree == Topology.of(tree.paths)


def test_several_requests_are_measured_at_doubling_numbers_each_once(
    backbone: Backbone, heads: DraftHeads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_cost, "WIDE_SPREAD", 1e9)
    said: list[str] = []
    cost = measure_cost.machine_cost(backbone, heads, tmp_path, said.append, slots=3)
    assert sorted(cost.measured) == [1, 2, 3]
    assert cost.table(1).typical.nodes == list(measure_cost.NODES)
    assert cost.table(3).typical.nodes == list(measure_cost.BATCHED_NODES)
    assert cost.table(3).typical.wide_nodes == measure_cost.BATCHED_NODES[-1]
    assert not cost.padded
    assert "for 2 requests" in said[1]
    assert measure_cost.machine_cost(backbone, heads, tmp_path, said.append, slots=2).measured[2] == cost.measured[2]
    assert len(said) == 3


def test_where_steps_are_captured_the_stairs_are_measured_for_every_number_of_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_cost, "WIDE_SPREAD", 1e9)
    model = tiny_model("llama", num_hidden_layers=1)
    model.config.max_position_embeddings = 1024
    eager = build_backbone(model, "eager")
    heads = random_heads("hydra", eager, draft_vocab_size=VOCAB).attach(eager)
    before = measure_cost.step_cost(eager, heads, tmp_path, print)
    monkeypatch.setattr(Graphs, "on", classmethod(lambda cls, devices: cls(Taped())))
    captured: list[int] = []

    def counted(work: Any, repetitions: int, warm_up: int) -> Any:
        records = run_interleaved(work, repetitions, warm_up)
        captured.extend(step.captures for steps in records.values() for step in steps)
        return records

    run_interleaved = measure_cost.run_interleaved
    monkeypatch.setattr(measure_cost, "run_interleaved", counted)
    cost = measure_cost.machine_cost(eager, heads, tmp_path, print, slots=2)
    assert cost.padded
    assert not before.padded
    for batch in (1, 2):
        (near, far) = cost.table(batch).costs
        assert near.nodes == far.nodes == [0, 1, 3, 7, 15, 23, 31, 39, 47, 63]
        assert near.wide_nodes == 63
    assert set(captured) == {0}, "a step that captures takes longer than any later one"
    assert OnlineStepCost(cost).padded
