from collections.abc import Sequence

import numpy as np
import pytest
import torch

from entmtp.decoding.sequence import bare_sequence
from entmtp.decoding.state import DecodingState
from entmtp.decoding.step import decode_step
from entmtp.decoding.timers import Stopwatch
from entmtp.errors import EntMTPError
from entmtp.policies.acceptance_bias import AcceptanceBias
from entmtp.policies.base import Choice
from entmtp.policies.dynamic import MAX_EXPANDED_NODES, ROOT_ONLY, DynamicPolicy, _Node
from entmtp.policies.policy_cost import FixedCost
from entmtp.policies.signals import Signals
from entmtp.policies.step_cost import StepCost
from entmtp.trees.bank import MAX_NODES
from entmtp.trees.batch import TreeBatch
from entmtp.trees.predictor import Predictor
from entmtp.trees.probability_calibration import ProbabilityCalibration, SharpnessScaling
from entmtp.trees.topology import Topology
from tests.helpers.policy_costs import ChangingCost
from tests.helpers.small_cases import (
    Estimating,
    Scripted,
    single_engine,
    small_backbone,
    small_chances,
    small_cost,
    small_estimating_chances,
    small_heads,
    small_prompt,
    small_sharp_chances,
)
from tests.helpers.tiny_models import greedy

EASY = Signals(0, 0.0, 0.0, 0.0)
HARD = Signals(0, 9.0, 9.0, 0.0)
UNCALIBRATED = ProbabilityCalibration(slope=[1.0] * 3, offset=[0.0] * 3, follow=[[0.6, 0.2, 0.05, 0.02]] * 3)
PREDICTOR = Predictor(
    features=["entropy"],
    weights=[-1.0],
    bias=0.0,
    centres=[-9.0, 0.0],
    shares=[0.5, 0.5],
    paths=[(0,), (0, 0)],
    probabilities=[[0.01, 0.0], [0.8, 0.5]],
)


def script(*levels: Sequence[float]) -> Scripted:
    return Scripted(levels)


def expanded(heads: Scripted, cost: StepCost, signals: Signals = EASY) -> Choice:
    return DynamicPolicy(PREDICTOR, UNCALIBRATED, FixedCost(cost.of_batch), 8).choose(
        [signals], [AcceptanceBias()], [63], lambda requests: heads
    )[0]


def test_hard_text_is_not_drafted_for_at_all() -> None:
    heads = script()
    assert expanded(heads, small_cost(1.0, 1.0), HARD) == Choice(Topology.root_only())
    assert heads.requested == []


def test_sure_heads_grow_a_chain() -> None:
    found = expanded(script(*[[0.97, 0.01, 0.005, 0.001]] * 3), small_cost(1.0, 1.0))
    assert found.topology.paths == ((0,), (0, 0), (0, 0, 0))
    assert found.tokens == [0, 100, 200]


def test_unsure_heads_grow_a_wide_level_and_no_deeper_one() -> None:
    heads = script([0.16, 0.15, 0.14, 0.13])
    found = expanded(heads, small_cost(0.5, 8.0))
    assert found.topology.paths == ((0,), (1,), (2,), (3,))
    assert heads.requested == [[0]]


def test_only_parents_above_the_token_price_are_expanded() -> None:
    heads = script([0.6, 0.3, 0.01, 0.01], [0.5, 0.3, 0.1, 0.05], [0.01, 0.01, 0.01, 0.01])
    expanded(heads, small_cost(0.5, 0.2))
    assert heads.requested[1] == [0, 1]


def test_hopeless_guesses_leave_plain_decoding() -> None:
    assert expanded(script([0.001] * 4), small_cost(2.0, 1.0)) == ROOT_ONLY


def test_other_costs_count_once_their_version_is_another() -> None:
    cost = ChangingCost(small_cost(1.0, 1.0).of_batch)
    policy = DynamicPolicy(PREDICTOR, UNCALIBRATED, cost, 8)

    def nodes() -> int:
        heads = script(*[[0.97, 0.01, 0.005, 0.001]] * 3)
        return policy.choose([EASY], [AcceptanceBias()], [63], lambda requests: heads)[0].topology.nodes

    assert nodes() == 3
    cost.current = small_cost(50.0, 1.0).of_batch
    assert nodes() == 3
    cost.version = 1
    assert nodes() == 0


@pytest.mark.parametrize("kind", ["medusa", "hydra"])
def test_growing_gives_the_tokens_that_filling_gives(kind: str) -> None:
    backbone = small_backbone()
    heads = small_heads(kind, backbone)
    state = DecodingState(backbone, heads, 1, 256)
    state.prefill(0, small_prompt(6))
    policy = DynamicPolicy(PREDICTOR, small_chances(), FixedCost(small_cost(0.01, 0.01).of_batch), 8)
    with torch.inference_mode():
        (tree,) = policy.choose(
            [EASY], [AcceptanceBias()], [63], lambda requests: state.expand(requests, Stopwatch(backbone.device))
        )
        assert state.drafter is not None
        filled = heads.propose(state.drafter.states[:1], state.root[:1], TreeBatch.of([tree.topology]))
    assert tree.topology.max_depth > 1
    assert filled.tokens[0, 1:].tolist() == tree.tokens


@pytest.mark.parametrize("kind", ["medusa", "hydra"])
def test_the_text_is_the_models_own(kind: str) -> None:
    backbone = small_backbone()
    policy = DynamicPolicy(PREDICTOR, small_chances(), FixedCost(small_cost(0.05, 0.05).of_batch), 8)
    done = single_engine(backbone, small_heads(kind, backbone), policy).generate(small_prompt(6), 60)
    assert done.tokens == greedy(backbone.model, small_prompt(6), 60)
    assert len({step.topology for step in done.steps}) > 1
    assert done.tau > 1
    assert all(step.draft_ms > 0 and step.policy_ms > 0 for step in done.steps if step.topology.nodes)


def test_a_step_that_drafts_nothing_is_timed_too() -> None:
    backbone = small_backbone()
    policy = DynamicPolicy(PREDICTOR, small_chances(), FixedCost(small_cost(50.0, 50.0).of_batch), 8)
    done = single_engine(backbone, small_heads("hydra", backbone), policy).generate(small_prompt(6), 5)
    assert [step.topology.nodes for step in done.steps] == [0] * 5
    assert all(step.policy_ms > 0 for step in done.steps)


def test_each_request_of_a_batch_grows_its_own_tree() -> None:
    backbone = small_backbone()
    policy = DynamicPolicy(
        PREDICTOR, small_chances(), FixedCost(lambda batch, context: small_cost(0.05 * batch, 0.05)), 8
    )
    state = DecodingState(backbone, small_heads("hydra", backbone), 3, 256)
    prompts = [small_prompt(length, seed=length) for length in (4, 9, 14)]
    started = [state.prefill(slot, prompt) for slot, prompt in enumerate(prompts)]
    requests = [bare_sequence(slot, policy, *first) for slot, first in enumerate(started)]
    for _ in range(12):
        decode_step(state, policy, requests)
    for request, prompt in zip(requests, prompts, strict=True):
        assert request.tokens == greedy(backbone.model, prompt, len(request.tokens))
    assert any(len({request.completion.steps[at].topology for request in requests}) > 1 for at in range(12))


def test_trees_of_a_batch_share_a_width_and_the_unsure_get_what_is_left_of_it() -> None:
    heads = Scripted([[0.97, 0.01, 0.005, 0.001]] * 3, [[0.3, 0.25, 0.2, 0.1], [0.1] * 4, [0.1] * 4])
    policy = DynamicPolicy(PREDICTOR, UNCALIBRATED, FixedCost(lambda batch, context: small_cost(0.5 * batch, 0.2)), 8)
    found = policy.choose([EASY, EASY], [AcceptanceBias(), AcceptanceBias()], [63, 63], lambda requests: heads)
    assert {tree.topology.nodes for tree in found} == {3}
    assert found[0].topology.max_depth == 3
    assert found[1].topology.paths == ((0,), (1,), (2,))


def test_the_cost_of_one_request_says_nothing_of_four() -> None:
    policy = DynamicPolicy(PREDICTOR, UNCALIBRATED, FixedCost(small_cost(0.5, 0.2).of_batch), 8)
    with pytest.raises(EntMTPError, match=r"^batch: .* 1 request, not for 4"):
        policy.choose([EASY] * 4, [AcceptanceBias() for _ in range(4)], [63] * 4, lambda requests: Scripted())


def test_a_level_costs_what_a_chain_that_is_longer_by_it_takes_longer_to_draft() -> None:
    drafts = [1.0, 3.0, 3.5, 4.5]
    cost = small_cost().model_copy(update={"narrow_draft_ms": drafts, "wide_draft_ms": drafts})
    policy = DynamicPolicy(PREDICTOR, UNCALIBRATED, FixedCost(cost.of_batch), 8)
    rate = policy._before.rate((63,), 160)
    assert policy._token_prices((63,), 160).levels == pytest.approx([1.0 * rate, 2.0 * rate, 0.5 * rate])


def test_a_chance_multiplies_along_a_path() -> None:
    policy = DynamicPolicy(PREDICTOR, UNCALIBRATED, FixedCost(small_cost(0.01, 0.01).of_batch), 8)
    nodes = policy._expand(
        script(*[[0.5, 0.2, 0.1, 0.1]] * 3), [_Node(0, (), 0, 1.0, 0, 0.0)], policy._token_prices((63,), 160), [63]
    )
    by_path = {node.path: node.chance for node in nodes}
    assert by_path[0, 1] == pytest.approx(0.1, abs=1e-4)
    assert by_path[0, 0, 0] == pytest.approx(0.125, abs=1e-4)


def test_equally_likely_guesses_of_surer_heads_have_other_chances() -> None:
    scaling = SharpnessScaling(slope=[1.0] * 3, offset=[0.0] * 3, entropy=[0.0] * 3, margin=[0.5] * 3)
    chances = UNCALIBRATED.model_copy(update={"sharpness": scaling})
    policy = DynamicPolicy(PREDICTOR, chances, FixedCost(lambda batch, context: small_cost(0.01 * batch, 0.01)), 8)
    clear, close = [0.4, 0.1, 0.05, 0.05], [0.4, 0.39, 0.05, 0.05]
    biases = [AcceptanceBias(), AcceptanceBias()]
    nodes = policy._expand(
        Scripted([clear, close, clear], [close, clear, clear]),
        [_Node(request, (), 0, 1.0, request, biases[request].log_odds) for request in (0, 1)],
        policy._token_prices((63, 63), 160),
        [63, 63],
    )
    chance = {(node.request, node.path): node.chance for node in nodes}
    sure, unsure = (1 / (1 + np.exp(-np.log(0.4 / 0.6) - 0.5 * np.log(0.4 / second))) for second in (0.1, 0.39))
    assert chance[0, (0,)] == pytest.approx(sure)
    assert chance[1, (0,)] == pytest.approx(unsure)
    assert chance[0, (0, 0)] == pytest.approx(sure * unsure)
    assert chance[1, (0, 0)] == pytest.approx(sure * unsure)


def test_trees_follow_what_the_heads_estimate_at_each_node() -> None:
    scaling = SharpnessScaling(
        slope=[1.0] * 3, offset=[0.0] * 3, entropy=[0.0] * 3, margin=[0.0] * 3, estimated_odds=[0.5] * 3
    )
    chances = UNCALIBRATED.model_copy(update={"sharpness": scaling})
    policy = DynamicPolicy(PREDICTOR, chances, FixedCost(lambda batch, context: small_cost(0.2 * batch, 0.2)), 8)
    level = [0.5, 0.1, 0.05, 0.05]
    heads = Estimating([4.0, -4.0], [level] * 3, [level] * 3)
    biases = AcceptanceBias(), AcceptanceBias()
    nodes = policy._expand(
        heads,
        [_Node(request, (), 0, 1.0, request, biases[request].log_odds) for request in (0, 1)],
        policy._token_prices((63, 63), 160),
        [63, 63],
    )
    chance = {(node.request, node.path): node.chance for node in nodes}
    likely, unlikely = (1 / (1 + np.exp(-odds)) for odds in (2.0, -2.0))
    assert chance[0, (0,)] == pytest.approx(likely)
    assert chance[0, (0, 0)] == pytest.approx(likely**2)
    assert chance[1, (0,)] == pytest.approx(unlikely)
    heads = Estimating([4.0, -4.0], [level] * 3, [level] * 3)
    sure, unsure = policy.choose([EASY, EASY], biases, [63, 63], lambda requests: heads)
    assert sure.topology.max_depth == 3
    assert sure.topology.nodes > unsure.topology.nodes


def test_estimates_that_nothing_reads_are_not_computed() -> None:
    class Unread(Scripted):
        def estimated_odds(self) -> torch.Tensor | None:
            pytest.fail("computed")

    level = [0.5, 0.1, 0.05, 0.05]
    policy = DynamicPolicy(PREDICTOR, small_sharp_chances(), FixedCost(small_cost().of_batch), 8)
    (found,) = policy.choose([EASY], [AcceptanceBias()], [63], lambda requests: Unread([level] * 3))
    assert found.topology.nodes


def test_chances_that_read_estimates_need_heads_that_make_some() -> None:
    policy = DynamicPolicy(PREDICTOR, small_estimating_chances(), FixedCost(small_cost().of_batch), 8)
    with pytest.raises(EntMTPError, match="these heads don't estimate their own acceptance"):
        policy.choose([EASY], [AcceptanceBias()], [63], lambda requests: script([0.5, 0.1, 0.05, 0.05]))


def test_each_level_is_one_pass_for_all_requests() -> None:
    sure, unsure = [0.97, 0.01, 0.005, 0.001], [0.3, 0.2, 0.1, 0.1]
    heads = Scripted([sure] * 3, [unsure, sure, sure])
    policy = DynamicPolicy(PREDICTOR, UNCALIBRATED, FixedCost(lambda batch, context: small_cost(0.2 * batch, 0.2)), 8)
    found = policy.choose([EASY, EASY], [AcceptanceBias(), AcceptanceBias()], [63, 63], lambda requests: heads)
    assert heads.requested[0] == [0, 1]
    assert heads.requested[1][:2] == [0, 4]
    assert found[0].tokens is not None
    assert found[0].tokens[0] == 0
    assert found[1].tokens is not None
    assert found[1].tokens[:2] == [4, 5]


def test_where_nodes_cost_nothing_many_children_are_drafted_and_the_tree_is_as_large_as_may_be() -> None:
    generous = ProbabilityCalibration(slope=[1.0] * 3, offset=[0.0] * 3, follow=[[0.3, *[0.04] * 15]] * 3)
    probabilities = [0.3, *[0.04] * 15]
    policy = DynamicPolicy(PREDICTOR, generous, FixedCost(lambda batch, context: small_cost(0.0, 0.01)), 8)
    heads = script(*[probabilities] * 3)
    (found,) = policy.choose([EASY], [AcceptanceBias()], [MAX_NODES], lambda requests: heads)
    assert found.topology.nodes == MAX_EXPANDED_NODES
    assert max(found.topology.max_rank) == 15
    assert Topology.of(found.topology.paths).paths == found.topology.paths
    assert len(found.tokens or []) == MAX_EXPANDED_NODES


def test_a_plain_step_that_takes_longer_than_one_with_a_tree_makes_no_node_free() -> None:
    cost = StepCost(
        nodes=[0, 1, 63],
        verify_ms=[40.0, 20.0, 20.0 + 62],
        narrow_draft_ms=[0.1, 0.2, 0.3],
        wide_draft_ms=[0.1, 0.2, 0.3],
        wide_nodes=63,
        hardware="test",
    )
    heads = script(*[[0.6, 0.2, 0.001, 0.001]] * 3)
    expanded(heads, cost)
    assert heads.requested == [[0], [0, 1], [0, 1, 4]]


def test_where_the_first_node_costs_most_and_others_little_trees_are_large() -> None:
    generous = ProbabilityCalibration(slope=[1.0] * 3, offset=[0.0] * 3, follow=[[0.3, *[0.04] * 15]] * 3)
    gpu = StepCost(
        nodes=[0, 1, 63],
        verify_ms=[20.0, 22.0, 22.5],
        narrow_draft_ms=[0.1, 0.2, 0.3],
        wide_draft_ms=[0.1, 0.2, 0.3],
        wide_nodes=63,
        hardware="test",
    )
    policy = DynamicPolicy(PREDICTOR, generous, FixedCost(gpu.of_batch), 8)
    (found,) = policy.choose([EASY], [AcceptanceBias()], [63], lambda requests: script(*[[0.3, *[0.04] * 15]] * 3))
    assert found.topology.nodes > 40


def test_a_request_that_accepts_less_than_was_expected_of_it_is_believed_less() -> None:
    policy = DynamicPolicy(PREDICTOR, UNCALIBRATED, FixedCost(small_cost(0.3, 0.1).of_batch), 8)

    def nodes_after(gained: int) -> int:
        bias = AcceptanceBias()
        for _ in range(60):
            seen = Signals(0, 0.0, 0.0, 0.0, gained)
            (found,) = policy.choose([seen], [bias], [63], lambda requests: script(*[[0.5, 0.2, 0.1, 0.1]] * 3))
        return found.topology.nodes

    assert nodes_after(1) < nodes_after(4)
