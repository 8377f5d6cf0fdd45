"""The roofline's arithmetic and the harness, on tiny models; its times are not tested."""

import json
import random
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import origin, step
from benchmarks.lib import timing
from benchmarks.lib.bars import cpu_bars, cuda_bars
from benchmarks.lib.fixed_depth import FixedDepthPolicy
from benchmarks.lib.record import read_record
from benchmarks.lib.roofline import Machine, Work, multiplied_weights, step_work
from benchmarks.lib.shapes import SHAPES, random_heads, random_model, shape_of
from benchmarks.lib.timing import StepTime, churn, ladder_of, random_tree, timed_steps
from entmtp.decoding.graphs import Graphs
from entmtp.decoding.measure_cost import StepBench, sized_tree
from entmtp.decoding.outputs import PARTS
from entmtp.errors import EntMTPError
from entmtp.heads.original_hydra import OriginalHydraConfig, OriginalHydraHeads
from entmtp.heads.stateless import StatelessExpansion
from entmtp.models.build import build_backbone
from entmtp.policies.hardware_profile import ProfileProvenance, load_profile
from entmtp.policies.signals import Signals
from entmtp.settings import Kernels
from entmtp.trees.topology import Topology
from tests.helpers import tiny_models
from tests.helpers.taped_graphs import Taped

UNIT = Machine(bytes_per_ms=1, multiply_adds_per_ms=1, cache_bytes=0)
DEEP = Topology.of([(0,), (0, 0), (1,), (1, 0), (0, 0, 0)])


def multiplied(model: Any) -> int:
    """Number of weights that a step multiplies by."""
    return sum(weight.numel() for weight in multiplied_weights(model))


def work(kind: str, tree: Topology, batch: int = 1, cached: int = 0) -> Work:
    model = tiny_models.tiny_model("llama")
    backbone = build_backbone(model)
    return step_work(model, tiny_models.random_heads(kind, backbone).attach(backbone), tree, batch, cached)


def bench(kind: str, batch: int, context: int, max_nodes: int = 20, kernels: Kernels = "auto") -> StepBench:
    backbone = build_backbone(tiny_models.tiny_model("llama"), kernels)
    return StepBench(backbone, tiny_models.random_heads(kind, backbone).attach(backbone), batch, context, max_nodes)


def test_operations_grow_with_tokens_and_bytes_do_not() -> None:
    weights = multiplied(tiny_models.tiny_model("llama"))
    plain = work("medusa", Topology.root_only(), cached=100)
    assert plain == Work(4 * (weights + 100), (), weights + 100)
    many = work("medusa", Topology.root_only(), batch=3, cached=300)
    assert many == Work(4 * (weights + 300), (), 3 * (weights + 100))


@pytest.mark.parametrize(("kind", "per_level"), [("medusa", 2), ("hydra", 3)])
def test_only_the_levels_that_a_tree_reaches_are_read(kind: str, per_level: int) -> None:
    level, output = per_level * 24 * 32, tiny_models.DRAFT_VOCAB * 32
    weights = multiplied(tiny_models.tiny_model("llama"))
    one, three = work(kind, Topology.of([(0,), (1,)])), work(kind, DEEP)
    assert one.bytes == 4 * (weights + level + 1 + output)
    assert three.bytes == 4 * (weights + 3 * (level + 1) + output)
    assert one.again_bytes == ()
    # Hydra's levels wait for each other: the output layer is read by each of them, for each node that has children.
    assert three.again_bytes == ((4 * output,) * 2 if kind == "hydra" else ())
    parents = {"medusa": 3, "hydra": 1 + 2 + 1}[kind]
    assert three.multiply_adds == 6 * weights + parents * output


@pytest.mark.parametrize(("outputs", "layers_read", "read_again"), [(4, 3, 0), (1, 1, 2), (0, 1, 2)])
def test_imported_heads_bring_output_layers_of_their_own(outputs: int, layers_read: int, read_again: int) -> None:
    model = tiny_models.tiny_model("llama")
    backbone = build_backbone(model)
    hidden, vocab = backbone.hidden_size, tiny_models.VOCAB
    config = OriginalHydraConfig(
        hidden_size=hidden, vocab_size=vocab, num_heads=4, num_layers=1, draft_vocab_size=vocab, outputs=outputs
    )
    heads = OriginalHydraHeads(config).attach(backbone)
    found = step_work(model, heads, DEEP, 1, 0)
    first_blocks = sum(2 * hidden * ((head + 2) * hidden + 1) for head in range(4))
    drafted = first_blocks * 3 // 4 + layers_read * vocab * hidden
    assert found.bytes == 4 * (multiplied(model) + drafted)
    assert found.again_bytes == (4 * vocab * hidden,) * read_again


def test_what_a_cache_holds_is_not_read_again() -> None:
    twice = Work(bytes=100, again_bytes=(30, 30), multiply_adds=7)
    assert twice.floors(UNIT) == (160, 7)
    assert twice.floors(Machine(2, 7, cache_bytes=20)) == (60, 1)
    assert twice.floors(Machine(1, 1, cache_bytes=50)) == (100, 7)


def test_an_embedding_table_of_its_own_is_looked_up_not_multiplied() -> None:
    tied, untied = (tiny_models.tiny_model("llama", tie_word_embeddings=tie) for tie in (True, False))
    assert multiplied(tied) == multiplied(untied) == sum(weight.numel() for weight in tied.parameters())


def test_the_cache_counts_as_far_as_it_is_read() -> None:
    two = bench("hydra", 2, 9)
    model = tiny_models.tiny_model("llama")
    assert two.state.heads is not None
    found = step.work_of(two, model, two.state.heads, Topology.root_only())
    config = two.state.backbone.config
    cached = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 9
    assert found.bytes == 4 * (multiplied(model) + cached)


def test_steps_start_from_the_same_state_and_time_every_part() -> None:
    two = bench("hydra", 2, 9)
    times = timed_steps(two, {nodes: ladder_of(sized_tree(nodes, 4)) for nodes in (0, 3)}, repetitions=3)
    for time in times.values():
        assert set(time.parts) == set(PARTS)
        assert time.wall_ms > time.parts["verify"] > 0
        assert time.rest_ms >= 0
    assert two.state.cache.lengths == [9, 9]


@pytest.mark.parametrize(("kind", "batch"), [("medusa", 1), ("hydra", 2)])
@pytest.mark.parametrize("depth", [1, 3, 4])
def test_the_expansion_that_is_timed_runs_every_level_whatever_the_heads_say(
    kind: str, batch: int, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = StatelessExpansion.next_level

    def spied(expansion: StatelessExpansion, parents: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(len(parents))
        return real(expansion, parents, count)

    monkeypatch.setattr(StatelessExpansion, "next_level", spied)
    record = bench(kind, batch, 9).step(FixedDepthPolicy(depth))
    assert asked == [batch, 2 * batch, batch, batch][:depth]
    assert record.topology.max_depth == depth
    assert record.draft_ms > 0


def test_expanding_costs_what_the_heads_and_the_host_between_them_take() -> None:
    filled = StepTime(dict.fromkeys(PARTS, 0.0) | {"policy": 0.1, "draft": 0.5}, 0.4, 9.0)
    expanded = StepTime(dict.fromkeys(PARTS, 0.0) | {"policy": 1.1, "draft": 0.8}, 0.6, 11.0)
    assert step.expanded_draft_ms(expanded, filled) == pytest.approx(0.8 + 1.0 + 0.2)
    assert step.expanded_draft_ms(filled, expanded) == 0.5


def test_the_ladder_that_is_timed_takes_the_measured_tree_at_any_entropy() -> None:
    policy = ladder_of(DEEP)
    state = policy.start()
    seen = {policy.choose_one(Signals(0, nats, nats, 1.0), state, 63) for nats in (0.0, 0.3, 0.7, 3.0)}
    assert seen == {DEEP}


@pytest.mark.parametrize("batch", [1, 3])
def test_changing_trees_capture_nothing_after_the_warm_up(batch: int) -> None:
    some = bench("hydra", batch, 20, max_nodes=12, kernels="eager")  # a tape captures no fused kernels
    some.state.graphs = Graphs(Taped())
    found = churn(some, 12, 3, steps=30, warm_up=0)
    assert (found.steps, found.graphs, found.captures) == (30, True, 0)
    assert some.state.graphs.captures > 30


def test_a_capture_in_the_counted_steps_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    some = bench("medusa", 1, 20, max_nodes=12, kernels="eager")
    some.state.graphs = Graphs(Taped())
    monkeypatch.setattr(timing, "_shapes", lambda nodes, depth: iter([(0, 0)]))
    assert churn(some, 12, 3, steps=20, warm_up=0).captures > 0


def test_random_trees_have_the_asked_sizes() -> None:
    draw = random.Random(0)
    for nodes, depth in [(0, 0), (1, 1), (16, 1), (63, 2), (63, 4), (4, 4)]:
        tree = random_tree(draw, nodes, depth)
        assert (tree.nodes, tree.max_depth) == (nodes, depth)
    drawn = list(islice(timing._random_trees(draw, 63, 4), 200))
    assert max(tree.nodes for tree in drawn) <= 63
    assert {tree.max_depth for tree in drawn} == {0, 1, 2, 3, 4}


def times_of(wall: float, draft: float = 0.0, accept: float = 0.0) -> StepTime:
    return StepTime(dict.fromkeys(PARTS, 0.0) | {"draft": draft, "accept": accept}, 0.0, wall)


def figures(line: str) -> list[str]:
    """Verdict, step and figures of a bar."""
    return re.findall(r"PASS|FAIL|\d+-token|\d+ nodes|[\d.]+[x%]", line)


def test_bars_say_what_passed_with_numbers() -> None:
    found = [*map(figures, cpu_bars({0: times_of(10), 3: times_of(13.5, accept=1.0), 15: times_of(23, draft=3)}))]
    assert found[:2] == [["PASS", "4-token", "1.35x", "1.35x"], ["FAIL", "16-token", "2.30x", "2.20x"]]
    assert ["FAIL", "7.4%", "4-token", "5.0%"] in found
    assert found[-1] == ["PASS", "13.0%", "16-token", "15.0%"]
    assert len(found) == 6
    assert [*map(figures, cuda_bars({0: times_of(11.1), 32: times_of(12)}, {0: 10, 32: 10}))] == [
        ["FAIL", "0 nodes", "1.11x", "1.10x"],
        ["PASS", "32 nodes", "1.20x", "1.25x"],
    ]


def test_a_shape_is_made_where_it_stays() -> None:
    model = random_model(SHAPES["vicuna-7b"], torch.device("meta"), torch.bfloat16)
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    assert multiplied(model) == 6_607_343_616
    with pytest.raises(EntMTPError, match=r"^shape: 'huge' .* vicuna-7b, small, tiny"):
        shape_of("huge")


def test_a_shapes_heads_fill_trees() -> None:
    backbone = build_backbone(random_model(SHAPES["tiny"], torch.device("cpu"), torch.float32))
    heads = random_heads(SHAPES["tiny"], "hydra", backbone)
    assert (heads.num_heads, heads.config.draft_vocab_size) == (4, 512)
    with pytest.raises(EntMTPError, match=r"^heads: kind 'eagle' "):
        random_heads(SHAPES["tiny"], "eagle", backbone)


def test_one_command_prints_keeps_and_makes_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    monkeypatch.setattr(origin, "changed_files", list)
    app = typer.Typer()
    app.command()(step.main)
    kept, made = tmp_path / "step.json", tmp_path / "here.json"
    words = "--shape tiny --nodes 0 --nodes 3 --batch 1 --batch 2 --context 20 --repetitions 3 --profile --heads medusa"
    run = CliRunner().invoke(app, [*words.split(), "--record", str(kept), "--save-profile", str(made)])
    assert run.exit_code == 0, run.output
    record = read_record(kept)
    assert [len(table.rows) for table in record.tables] == [2, 10, 10, 2, 10, 10]
    assert [row[0] for row in record.tables[0].rows] == [0, 3]
    assert any("the 4-token step takes" in note for note in record.notes)
    profile = load_profile(str(made))
    assert profile.measured.heads_kind == "medusa"
    assert profile.cost(2).verify_ms[0] == pytest.approx(profile.points[1].without_draft_ms[0])
    assert json.loads(made.read_text())["nodes"] == [0, 3]
    expanded = profile.expanded_cost(2)
    assert expanded is not None
    assert expanded.narrow_draft_ms == expanded.wide_draft_ms == profile.points[1].expanded_draft_ms
    assert {path.name for path in tmp_path.iterdir()} == {"step.json", "here.json"}


@pytest.mark.parametrize(
    ("sizes", "captured", "padded"), [([0, 3], True, True), ([0, 3], False, False), ([0, 2], True, False)]
)
def test_a_profile_is_a_staircase_where_the_stairs_were_measured(
    sizes: list[int], captured: bool, padded: bool
) -> None:
    origin = dict.fromkeys(("hardware", "date", "command", "commit", "model", "heads_kind", "dtype", "kernels"), "x")
    keys = [*(("verify", size) for size in sizes), *((kind, 1) for kind in ("narrow", "wide", "expanded"))]
    times = dict.fromkeys(keys, StepTime(dict.fromkeys(PARTS, 1.0), 0.0, 5.0))
    point = step.profile_point(1, 20, sizes, 1, times)
    measured = ProfileProvenance(**origin, versions={})
    assert step.make_profile(measured, sizes, [(1, 20)], [point], captured).padded is padded
