from collections import Counter
from dataclasses import replace

import pytest

from entmtp import methods
from entmtp.decoding.outputs import Completion
from entmtp.evaluation.run.arms import Foresight, Toolbox, check_acceptance, make_engine, make_policy
from entmtp.methods import check_arms
from entmtp.models.build import build_backbone
from entmtp.policies.ladder import best_static
from entmtp.policies.static import ScheduledPolicy, SequencePolicy
from entmtp.policies.step_cost import StepCost
from entmtp.policies.yardsticks import all_trees
from entmtp.settings import EngineSettings
from entmtp.trees.bank import TreeBank
from entmtp.trees.published import published_tree
from entmtp.trees.topology import Topology
from entmtp.trees.trace_replay import best_schedule, right_path_schedule
from tests.helpers.small_cases import small_bank, trace_of, traced
from tests.helpers.stateless_arms import LOSSLESS
from tests.helpers.tiny_models import greedy, random_heads, random_tokens, tiny_model

NEW_TOKENS = 40
COST = StepCost(
    nodes=[0, 4, 63],
    verify_ms=[10.0, 12.0, 60.0],
    narrow_draft_ms=[0.5, 1.0, 1.5, 2.0],
    wide_draft_ms=[1.0, 2.0, 3.0, 4.0],
    wide_nodes=63,
    hardware="test",
)
SINGLE = EngineSettings.for_one()
PROMPT = random_tokens(9)


@pytest.fixture(scope="module")
def tools() -> Toolbox:
    backbone = build_backbone(tiny_model("llama"))
    heads = {kind: random_heads(kind, backbone).attach(backbone) for kind in ("medusa", "hydra")}
    banks = {kind: small_bank(heads_kind=kind) for kind in heads}
    return Toolbox(backbone, heads, banks, dict.fromkeys(heads, COST), dict.fromkeys(methods.foreign_banks(), banks))


@pytest.fixture(scope="module")
def foresight(tools: Toolbox) -> Foresight:
    dynamic_run = make_engine("entmtp-dynamic", tools, SINGLE).generate(PROMPT, NEW_TOKENS)
    trace = traced(tools.backbone, tools.heads["hydra"], PROMPT, dynamic_run.tokens)
    return Foresight(trace, dynamic_run, "0-gsm8k/1")


@pytest.fixture(scope="module")
def runs(tools: Toolbox, foresight: Foresight) -> dict[str, Completion]:
    return {arm: make_engine(arm, tools, SINGLE, foresight).generate(PROMPT, NEW_TOKENS) for arm in LOSSLESS}


def trees(run: Completion) -> list[Topology]:
    return [step.topology for step in run.steps]


@pytest.mark.parametrize("arm", LOSSLESS)
def test_every_arm_writes_the_models_own_text(arm: str, runs: dict[str, Completion], tools: Toolbox) -> None:
    assert runs[arm].tokens == greedy(tools.backbone.model, PROMPT, NEW_TOKENS)


@pytest.mark.parametrize("kind", ["medusa", "hydra"])
def test_static_arms_keep_one_tree(kind: str, runs: dict[str, Completion], tools: Toolbox) -> None:
    assert set(trees(runs[kind])) == {published_tree()}
    assert set(trees(runs[f"{kind}-best"])) == {best_static(tools.banks[kind], COST)}
    assert set(trees(runs["autoregressive"])) == {Topology.root_only()}


def test_the_random_control_has_a_policys_trees_in_another_order(
    runs: dict[str, Completion], foresight: Foresight, tools: Toolbox
) -> None:
    bank = tools.banks["hydra"].model_copy(update={"thresholds": [1.5, 2.5]})  # about what this model's entropies are
    shifted = Toolbox(tools.backbone, tools.heads, {"hydra": bank}, tools.costs)
    ladder = make_engine("entmtp", shifted, SINGLE).generate(PROMPT, NEW_TOKENS)
    seen = Foresight(foresight.trace, ladder, "seed")
    control = make_engine("random", shifted, SINGLE, seen).policy
    assert isinstance(control, SequencePolicy)
    state = control.start()
    shuffled = [control.choose_one(step.signals, state, 63) for step in ladder.steps]
    assert Counter(shuffled) == Counter(trees(ladder))
    assert len(Counter(shuffled)) > 1
    assert shuffled != trees(ladder)
    again = make_engine("random", shifted, SINGLE, seen).generate(PROMPT, NEW_TOKENS)
    assert trees(again) == trees(make_engine("random", shifted, SINGLE, seen).generate(PROMPT, NEW_TOKENS))


def test_no_arm_of_the_same_heads_and_bank_beats_the_bank_oracle_and_that_not_hindsight(
    runs: dict[str, Completion], foresight: Foresight, tools: Toolbox
) -> None:
    predicted = {arm: sum(COST(tree) for tree in trees(runs[arm])) for arm in LOSSLESS}
    bank = tools.banks["hydra"]
    _, best = best_schedule(foresight.trace, all_trees(bank), COST)
    assert predicted["bank-oracle"] == pytest.approx(best)
    assert all(
        predicted["bank-oracle"] <= predicted[arm] + 1e-9
        for arm in ("hydra-best", "entmtp", "entmtp-goodput", "always-big")
    )
    _, least = right_path_schedule(foresight.trace, COST, ranks_of(bank))
    assert predicted["hindsight"] == pytest.approx(least)
    assert least < best


def ranks_of(bank: TreeBank) -> int:
    """Ranks that its trees or the published tree have, written without the arm's code."""
    return 1 + max(rank for tree in [*all_trees(bank), published_tree()] for path in tree.paths for rank in path)


def test_hindsight_verifies_nothing_that_is_not_accepted(runs: dict[str, Completion]) -> None:
    steps = runs["hindsight"].steps
    assert all(len(step.path) == step.topology.nodes for step in steps)
    assert {step.topology.nodes for step in steps} > {0, 1}
    assert any(rank for step in steps for rank in step.path), "a case in which it guesses more than the likeliest"


def test_the_bank_oracle_chooses_from_all_trees_of_its_bank(foresight: Foresight, tools: Toolbox) -> None:
    trace = trace_of([[at % 5, at // 5 % 3, at // 15 % 2, 0] for at in range(60)])  # several trees are best somewhere
    oracle = make_policy("bank-oracle", tools, replace(foresight, trace=trace))
    assert isinstance(oracle, ScheduledPolicy)
    assert oracle.by_position == best_schedule(trace, all_trees(tools.banks["hydra"]), COST)[0]
    assert len(set(oracle.by_position.values())) > 2


def test_arms_come_in_their_order_and_once() -> None:
    assert check_arms(["entmtp", "medusa", "entmtp", "autoregressive"]) == ["autoregressive", "medusa", "entmtp"]


def test_plain_decoding_needs_neither_heads_nor_banks(tools: Toolbox) -> None:
    bare = Toolbox(tools.backbone, {}, {}, {})
    assert make_engine("autoregressive", bare, SINGLE).generate(PROMPT, 5).tokens == greedy(
        tools.backbone.model, PROMPT, 5
    )


def test_controls_that_know_the_models_text_beforehand_are_refused_where_it_is_left() -> None:
    check_acceptance(["hydra", "bank-oracle"], "rejection")
    check_acceptance(["hydra", "medusa-typical"], "typical")
