import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from entmtp.calibration.build import make_bank, provenance_of, traces_of
from entmtp.calibration.command import calibrate_task
from entmtp.calibration.optimal import MAX_RANK
from entmtp.calibration.thresholds import MIN_STEPS_PER_BIN
from entmtp.errors import EntMTPError
from entmtp.heads.checkpoint import load_heads
from entmtp.models.build import build_backbone
from entmtp.models.loading.load import encode_chat, load_model
from entmtp.policies.static import StaticPolicy
from entmtp.settings import CalibrationSettings
from entmtp.suites import PAPER_SUITES, load_suite, split
from entmtp.suites.splits import draw
from entmtp.trees.bank import load_bank
from entmtp.trees.topology import Topology
from entmtp.trees.trace import RankTrace
from entmtp.trees.trace_replay import static_tau
from tests.helpers.saved_project import Saved, save_project
from tests.helpers.small_cases import drawn_trace, provenance, single_engine, trace_of

SETTINGS = CalibrationSettings(max_nodes=12)


def small_steps(topology: Topology) -> float:
    """Nodes are cheap."""
    return 10 + 0.5 * topology.nodes


def alternating_traces() -> list[RankTrace]:
    """Calm texts on which long chains are right, and wild ones on which second guesses are."""
    traces = []
    for seed in range(6):
        calm = drawn_trace(200, [0.9], heads=4, seed=seed)
        wild = drawn_trace(200, [0.25, 0.25, 0.2], heads=4, seed=seed)
        traces.append(replace(calm, entropy=0.2 * calm.entropy))
        traces.append(replace(wild, entropy=2 + wild.entropy))
    return traces


def test_calm_bins_get_chains_and_wild_ones_get_width() -> None:
    bank = make_bank(alternating_traces(), provenance(), SETTINGS, small_steps)
    assert 2 <= len(bank.bins) <= SETTINGS.max_rungs
    assert sum(one.share for one in bank.bins) == pytest.approx(1)
    assert bank.bins[0].tree(4) == Topology.of([(0,) * depth for depth in range(1, 5)])
    assert set(bank.bins[-1].tree(3).paths) == {(0,), (1,), (2,)}
    assert bank.bins[0].gain[4] > bank.overall.gain[4] > bank.bins[-1].gain[4]
    assert bank.thresholds[0] < 0.2 < 2 < bank.thresholds[-1], "calm text stays under 0.2 nats, wild text above 2"


def test_gains_are_what_a_replay_gives_and_start_at_plain_decoding() -> None:
    traces = alternating_traces()
    bank = make_bank(traces, provenance(), SETTINGS, small_steps)
    assert len(bank.overall.paths) == SETTINGS.max_nodes
    assert bank.overall.gain[0] == 1.0
    for nodes in (1, 5, 12):
        assert bank.overall.gain[nodes] == pytest.approx(static_tau(traces, bank.overall.tree(nodes)))
    for one in bank.bins:
        assert one.gain[0] == 1.0
        assert np.all(np.diff(np.diff(one.gain)) < 1e-4), "each node adds at most as much as the one before"


def test_shallower_frontiers_stop_at_their_depth_and_gain_what_they_replay_to() -> None:
    traces = alternating_traces()
    bank = make_bank(traces, provenance(), SETTINGS, small_steps)
    assert [one.trees[-1].max_depth for one in bank.by_depth] == [1, 2, 3, 4]
    for one in bank.by_depth:
        assert one.gain[3] == pytest.approx(static_tau(traces, one.tree(3)))


def test_where_no_tree_pays_the_ladder_has_one_rung() -> None:
    bank = make_bank(alternating_traces(), provenance(), SETTINGS, lambda topology: 1 + 5 * topology.nodes)
    assert bank.thresholds == []


def test_a_short_text_gets_one_bin() -> None:
    bank = make_bank([drawn_trace(MIN_STEPS_PER_BIN // 2, [0.5], heads=2, seed=0)], provenance(), SETTINGS, small_steps)
    assert bank.thresholds == []
    assert [one.share for one in bank.bins] == [1.0]


def test_texts_of_one_entropy_make_fewer_bins_not_an_error() -> None:
    drawn = drawn_trace(2000, [0.5], heads=2, seed=0)
    bank = make_bank([replace(drawn, entropy=drawn.entropy * 0)], provenance(), SETTINGS, small_steps)
    assert bank.thresholds == []
    assert [one.share for one in bank.bins] == [1.0]


def test_heads_that_are_never_right_get_no_bank() -> None:
    with pytest.raises(EntMTPError, match="the heads guessed nothing right"):
        make_bank([trace_of([[MAX_RANK, MAX_RANK]] * 9)], provenance(), SETTINGS, small_steps)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save_project(tmp_path_factory.mktemp("project"))


def test_one_bank_for_all_suites_is_made_from_their_traces(saved: Saved, tmp_path: Path) -> None:
    # A tiny project has two suites; their files stand in for the others'.
    for suite in PAPER_SUITES:
        for ending in ("json", "trace.safetensors"):
            made = suite if suite in ("gsm8k", "sharegpt") else "gsm8k"
            shutil.copy(saved.banks / f"{made}-hydra.{ending}", tmp_path / f"{suite}-hydra.{ending}")
    calibrate_task(
        task="mixed",
        output=tmp_path,
        model=str(saved.model),
        heads=[f"hydra={saved.heads('hydra')}"],
        data=None,
        overrides={},
        device="cpu",
        console=Console(quiet=True),
    )
    bank = load_bank(tmp_path / "mixed-hydra.json")
    parts = [load_bank(tmp_path / f"{suite}-hydra.json").provenance for suite in PAPER_SUITES]
    assert bank.provenance.task == "mixed"
    assert bank.provenance.tokens == sum(part.tokens for part in parts)
    assert bank.provenance.heads_fingerprint == parts[0].heads_fingerprint
    assert bank.overall.share == 1
    assert bank.tuning is not None
    assert len(bank.tuning.texts) == bank.provenance.prompts


def test_traces_of_written_text_are_those_of_a_real_run(saved: Saved) -> None:
    model, tokenizer = load_model(str(saved.model))
    backbone = build_backbone(model)
    heads = load_heads(saved.heads("hydra"), backbone)
    bank = load_bank(saved.banks / "gsm8k-hydra.json")
    traces = traces_of(saved.banks / "text" / "gsm8k", backbone, heads)
    prompts = [prompt.text for prompt in draw(split(load_suite("gsm8k", saved.data("gsm8k")).prompts)[0], 4, seed=0)]

    tree = bank.overall.tree(12)
    engine = single_engine(backbone, heads, StaticPolicy(tree, 8))
    done = [engine.generate(encode_chat(tokenizer, prompt), 48) for prompt in prompts]
    steps = sum(len(one.steps) for one in done)
    assert sum(len(trace) for trace in traces) == sum(len(one.tokens) for one in done) == bank.provenance.tokens
    assert static_tau(traces, tree) == pytest.approx(bank.provenance.tokens / steps)

    made = provenance_of(backbone, heads, "gsm8k", bank.provenance.prompts_origin, prompts, bank.provenance.tokens)
    assert made == bank.provenance.model_copy(update={"date": made.date})
