"""ReplayResult policies on made-up traces."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from entmtp.calibration.policy_replay import ReplayedStep, replay_steps
from entmtp.calibration.replay import (
    DYNAMIC,
    DecodingSpeed,
    cost_of,
    policies,
    replay_file,
    replay_policy,
    replayable,
    step_ms,
)
from entmtp.calibration.thresholds import retune
from entmtp.cli import app
from entmtp.errors import EntMTPError
from entmtp.heads.interface import Expansion
from entmtp.policies.goodput import candidates
from entmtp.policies.ladder import LadderPolicy
from entmtp.policies.signals import Signals
from entmtp.policies.static import StaticPolicy
from entmtp.policies.step_cost import StepCost, TreeCost
from entmtp.policies.yardsticks import all_trees
from entmtp.trees import topology
from entmtp.trees.bank import TreeBank
from entmtp.trees.topology import Topology
from entmtp.trees.trace import save_traces
from entmtp.trees.trace_replay import best_schedule, static_tau
from entmtp.trees.tuning_texts import TuningTexts
from tests.helpers.calm_and_wild_texts import alternating_text
from tests.helpers.small_cases import Scripted, drawn_trace, small_bank, small_cost
from tests.helpers.tiny_models import TREES

TRACES = [drawn_trace(300, [0.5, 0.15], heads=4, seed=seed) for seed in (1, 2, 3)]
FLAT, GPU_LIKE = cost_of("flat"), cost_of("gpu-like")
STEEP = StepCost(
    nodes=[0, 63],
    verify_ms=[1.0, 26.2],
    narrow_draft_ms=[0.01] * 4,
    wide_draft_ms=[0.01] * 4,
    wide_nodes=63,
    hardware="test",
)


def test_ideal_costs_are_what_their_words_say() -> None:
    chain = Topology.of([(0,), (0, 0)])
    wide = Topology.of([(rank,) for rank in range(127)])
    assert [FLAT(tree) for tree in (Topology.root_only(), chain, wide)] == [1.0, 1.0, 1.0]
    assert [GPU_LIKE(tree) for tree in (Topology.root_only(), chain, wide)] == pytest.approx([1.0, 1.06, 2.03])


def test_speedup_is_plain_time_over_the_steps_time() -> None:
    tau = static_tau(TRACES, TREES["chain"])
    found = replay_policy(TRACES, lambda trace: StaticPolicy(TREES["chain"], 8), GPU_LIKE)
    assert found.tau == pytest.approx(tau)
    assert found.nodes == 3
    assert found.speedup.value == pytest.approx(tau / 1.09)


def test_a_share_is_one_speed_over_another_text_by_text() -> None:
    slow = DecodingSpeed(tokens=np.array([10.0, 10.0, 10.0]), ms=np.array([10.0, 20.0, 40.0]), steps=5, plain_ms=1.0)
    fast = DecodingSpeed(tokens=np.array([20.0, 20.0, 20.0]), ms=np.array([10.0, 20.0, 40.0]), steps=5, plain_ms=1.0)
    share = slow.share_of(fast)
    assert (share.value, share.low, share.high) == pytest.approx((0.5, 0.5, 0.5))
    assert slow.tau == 6
    assert slow.speedup.value == pytest.approx(30 / 70)


def test_levels_that_ran_in_vain_are_paid_for() -> None:
    seen = Signals(0, 0.0, 0.0, 0.0)
    assert step_ms(ReplayedStep(seen, TREES["chain"], 1), GPU_LIKE) == pytest.approx(1.09)
    assert step_ms(ReplayedStep(seen, TREES["chain"], 1, levels=4), GPU_LIKE) == pytest.approx(1.12)
    assert step_ms(ReplayedStep(seen, Topology.root_only(), 1, levels=1), GPU_LIKE) == pytest.approx(1.03)


def test_the_dynamic_policy_goes_by_what_growing_costs() -> None:
    filled = small_cost()
    expanded = filled.model_copy(update={"narrow_draft_ms": [90.0] * 4, "wide_draft_ms": [90.0] * 4})
    expansions = [drafted] * len(TRACES)
    cheap, expensive = (
        replay_policy(TRACES, policies(small_bank(), filled, 4, cost)[DYNAMIC], cost, expansions)
        for cost in (filled, expanded)
    )
    assert cheap.nodes > 0
    assert expensive.nodes == 0
    assert expensive.speedup.value == pytest.approx(1)


def test_every_level_that_ran_is_counted() -> None:
    begun: list[Scripted] = []

    def expansion_at(position: int) -> Expansion:
        begun.append(Scripted([[0.6, 0.2, 0.1, 0.05], [0.01] * 4, [0.01] * 4]))
        return begun[-1]

    dynamic = policies(small_bank(), small_cost(), 4)[DYNAMIC](TRACES[0])
    steps = replay_steps(TRACES[0], dynamic, expansion_at)
    assert [step.levels for step in steps if step.levels] == [len(heads.requested) for heads in begun]
    assert any(step.levels > step.topology.max_depth for step in steps)


def drafted(position: int) -> Expansion:
    return Scripted([[0.6, 0.2, 0.1, 0.05]] * 4)


def test_the_ladder_is_tuned_at_the_cost_that_is_replayed() -> None:
    texts = TuningTexts.of([alternating_text(seed, telling=True) for seed in range(12)], max_rungs=4)
    bank = small_bank().model_copy(update={"tuning": texts})
    ladder = policies(bank, STEEP, 4)["ladder"](TRACES[0])
    assert isinstance(ladder, LadderPolicy)
    assert list(ladder.ladder.thresholds) == retune(bank, STEEP, pytest.fail).thresholds != bank.thresholds


@pytest.mark.parametrize("cost", [FLAT, GPU_LIKE, STEEP])
def test_nothing_beats_hindsight_and_plain_decoding_is_the_measure(cost: TreeCost) -> None:
    made = policies(small_bank(), cost, 4)
    assert set(made) == {*replayable(), DYNAMIC, "eagle2"}
    found = {name: replay_policy(TRACES, made[name], cost) for name in replayable()}
    assert found["autoregressive"].speedup.value == pytest.approx(1)
    for name in set(replayable()) - {"published", "hindsight"}:  # whose trees are not among the bank's
        assert (found["bank-oracle"].ms <= found[name].ms + 1e-6).all()
    for name in replayable():
        assert (found["hindsight"].ms <= found[name].ms + 1e-6).all()


def every_tree_of(bank: TreeBank) -> set[tuple[topology.Path, ...]]:
    """The choices of best-static, ladder and goodput, written without their code."""
    frontiers = [*bank.shallower, bank.overall, *bank.bins]
    found = {tuple(sorted(one.paths[:size], key=lambda path: (len(path), path))) for one in frontiers
             for size in range(len(one.paths) + 1)}  # fmt: skip
    return found | {tree.paths for tree in candidates(bank.predictor)}


def test_the_bank_oracle_chooses_from_every_tree_that_a_policy_may_choose() -> None:
    bank = small_bank()
    expected = every_tree_of(bank)
    assert len(expected) > 8
    assert expected <= {tree.paths for tree in all_trees(bank)}
    trees = [Topology.of(paths) if paths else Topology.root_only() for paths in expected]
    oracle = policies(bank, STEEP, 4)["bank-oracle"]
    for trace in TRACES:
        _, best = best_schedule(trace, trees, STEEP)
        found = replay_policy([trace], oracle, STEEP)
        assert found.ms[0] <= best + 1e-6
        assert len({step.topology for step in replay_steps(trace, oracle(trace))}) > 2


def test_where_trees_are_free_a_speedup_is_tau() -> None:
    made = policies(small_bank(), FLAT, 4)
    for name in replayable():
        found = replay_policy(TRACES, made[name], FLAT)
        assert found.speedup.value == pytest.approx(found.tau)


def test_the_dynamic_policy_needs_the_heads() -> None:
    with pytest.raises(EntMTPError, match="policy: 'dynamic' and 'eagle2' expand their trees with the heads"):
        replay_policy(TRACES, policies(small_bank(), FLAT, 4)[DYNAMIC], FLAT)


class TestFile:
    @pytest.fixture
    def files(self, tmp_path: Path) -> tuple[Path, Path]:
        bank = small_bank()
        bank.save(tmp_path / "bank.json")
        made = bank.provenance
        marks = {"heads": made.heads_fingerprint, "model": made.model_fingerprint}
        save_traces(tmp_path / "t.trace.safetensors", TRACES, marks)
        return tmp_path / "t.trace.safetensors", tmp_path / "bank.json"

    def test_a_file_is_replayed_in_the_policies_order(self, files: tuple[Path, Path]) -> None:
        assert list(replay_file(*files, ["goodput", "best-static"], FLAT)) == ["best-static", "goodput"]

    def test_the_command_prints_a_row_per_policy(self, files: tuple[Path, Path]) -> None:
        done = CliRunner().invoke(app, ["replay", str(files[0]), "--bank", str(files[1])])
        assert done.exit_code == 0, done.output
        assert all(name in done.output for name in replayable())
        assert done.output.count("bank-oracle") == 2, "a row, and a column of the shares of it"

    @pytest.mark.parametrize("name", ["dynamic", "eagle2", "known-chances"])
    def test_what_needs_the_heads_is_sent_to_them(self, name: str, files: tuple[Path, Path]) -> None:
        with pytest.raises(
            EntMTPError, match=f"policy: '{name}' expands its trees .*replay it with 'python -m benchmar"
        ):
            replay_file(*files, [name], FLAT)

    def test_an_unknown_policy_is_told(self, files: tuple[Path, Path]) -> None:
        with pytest.raises(EntMTPError, match="policy: 'luck' is unknown; choose from autoregressive, published"):
            replay_file(*files, ["luck"], FLAT)

    @pytest.mark.parametrize("field", ["heads", "model"])
    def test_a_trace_of_others_is_refused(self, field: str, files: tuple[Path, Path]) -> None:
        made = small_bank().provenance
        marks = {"heads": made.heads_fingerprint, "model": made.model_fingerprint} | {field: "other" * 4}
        save_traces(files[0], TRACES, marks)
        with pytest.raises(EntMTPError, match=f"trace: .* is of {field} otherotherot, the bank is of"):
            replay_file(*files, replayable(), FLAT)

    def test_a_bank_deeper_than_the_trace_is_refused(self, files: tuple[Path, Path]) -> None:
        made = small_bank().provenance
        marks = {"heads": made.heads_fingerprint, "model": made.model_fingerprint}
        save_traces(files[0], [drawn_trace(20, [0.5], heads=2, seed=0)], marks)
        with pytest.raises(EntMTPError, match="has depth 3 but there are only 2 draft heads"):
            replay_file(*files, replayable(), FLAT)
