import random
from collections.abc import Callable, Mapping
from collections.abc import Sequence as GenericSequence
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entmtp.decoding.engine import Engine
from entmtp.decoding.graphs import Graphs
from entmtp.decoding.request import Request
from entmtp.decoding.sampling import Sampler
from entmtp.decoding.sequence import Sequence, bare_sequence
from entmtp.decoding.state import DecodingState
from entmtp.decoding.step import decode_step
from entmtp.heads.base import DraftHeads
from entmtp.models import cache as cache_module
from entmtp.models.backbone import Backbone
from entmtp.policies.base import RequestPolicy
from entmtp.policies.dynamic import DynamicPolicy
from entmtp.policies.policy_cost import FixedCost
from entmtp.policies.static import SequencePolicy, StaticPolicy
from entmtp.settings import EngineSettings, SamplingParams
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Topology
from tests.helpers.arrivals import come_and_go
from tests.helpers.examples import examples
from tests.helpers.heads_with_features import feature_heads
from tests.helpers.hydra_plus_plus_heads import random_hydra_plus_plus_heads
from tests.helpers.small_cases import (
    SMALL_VOCAB,
    small_backbone,
    small_chances,
    small_cost,
    small_heads,
    small_predictor,
    small_prompt,
)
from tests.helpers.taped_graphs import Taped
from tests.helpers.tiny_models import TREES, greedy

ARCHITECTURES = ("llama", "gpt2", "mistral", "gemma3_text")


def drawn_tree(generator: random.Random) -> Topology:
    """A random tree of up to 15 nodes, now and then none."""
    paths: set[tuple[int, ...]] = set()
    for _ in range(generator.choice((0, 1, 3, 6, 15))):
        parent = generator.choice([(), *(path for path in sorted(paths) if len(path) < 4)])
        free = [(*parent, rank) for rank in range(SMALL_VOCAB) if (*parent, rank) not in paths]
        paths.add(generator.choice(free[:3]))
    return Topology.of(paths) if paths else Topology.root_only()


@cache
def taped_backbone(architecture: str = "llama", **changes: int) -> Backbone:
    """Backbone without fused kernels: a tape, like a CUDA graph, captures nothing else."""
    return small_backbone(architecture, kernels="eager", **changes)


def taped_state(backbone: Backbone, heads: DraftHeads | None, slots: int) -> DecodingState:
    state = DecodingState(backbone, heads, slots, capacity=512)
    state.graphs = Graphs(Taped())
    return state


def running(state: DecodingState, prompts: list[list[int]]) -> list[Sequence]:
    """Sequences that decode; the policy state of each is its slot."""
    started = [state.prefill(slot, prompt) for slot, prompt in enumerate(prompts)]
    sequences = [bare_sequence(slot, StaticPolicy(TREES["root"], 8), *first) for slot, first in enumerate(started)]
    for sequence in sequences:
        sequence.policy_state = [sequence.slot]
    return sequences


def captured_batch_sizes(state: DecodingState) -> set[int]:
    """Batch sizes for which forward passes were captured."""
    keys = [key for key in state.graphs._captured if isinstance(key, tuple)]
    return {len(kv_range.slots) for part, *_, kv_range in keys if part == "verify"}


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        *((architecture, "hydra") for architecture in ARCHITECTURES),
        ("llama", "medusa"),
        *(pytest.param(architecture, "medusa", marks=pytest.mark.slow) for architecture in ARCHITECTURES[1:]),
    ],
)
def test_a_thousand_trees_replay_the_graphs_of_a_few_shapes(architecture: str, kind: str) -> None:
    backbone = taped_backbone(architecture, max_position_embeddings=1024)
    state = taped_state(backbone, small_heads(kind, backbone), slots=1)
    generator = random.Random(0)
    trees = [drawn_tree(generator) for _ in range(100)]
    prompt = small_prompt(9)
    text = greedy(backbone.model, prompt, 110)
    captures = []
    for _ in range(4):
        (request,) = running(state, [prompt])
        policy = SequencePolicy(trees, 8)
        request.policy_state = policy.start()
        while len(request.tokens) < 100:
            decode_step(state, policy, [request])
        assert request.tokens == text[: len(request.tokens)]
        assert len({step.topology for step in request.completion.steps}) > 20
        assert any(step.path for step in request.completion.steps), "nothing was accepted: compaction was never needed"
        captures.append(state.graphs.captures)
        generator.shuffle(trees)
    assert captures[2] == captures[3] < 4 * 5 * 5
    assert state.graphs.disabled_reason is None


def test_tokens_that_no_graph_has_made_are_verified_by_graphs() -> None:
    backbone = taped_backbone()
    state = taped_state(backbone, small_heads("hydra", backbone), slots=1)
    policy = DynamicPolicy(
        small_predictor(), small_chances(), FixedCost(lambda batch, context: small_cost(0.01, 0.01)), 8
    )
    prompt = small_prompt(9)
    (request,) = running(state, [prompt])
    request.policy_state = policy.start()
    while len(request.tokens) < 60:
        decode_step(state, policy, [request])
    assert request.tokens == greedy(backbone.model, prompt, len(request.tokens))
    assert any(step.path for step in request.completion.steps)
    assert state.graphs.disabled_reason is None
    assert state.graphs.captures < len(request.completion.steps)


def test_a_batch_with_a_tree_each_replays_too() -> None:
    backbone = taped_backbone()
    heads = small_heads("hydra", backbone)
    prompts = [small_prompt(length, seed=length) for length in (3, 17, 9)]
    generator = random.Random(1)
    own = [[drawn_tree(generator) for _ in range(40)] for _ in prompts]

    class PerRequest(RequestPolicy):
        entropy_window = 8

        def start(self) -> list[int]:
            return []

        def choose_one(self, signals: object, state: list[int], limit: int) -> Topology:
            state.append(state[0])
            return own[state[0]][len(state) % 40]

    state = taped_state(backbone, heads, slots=3)
    requests = running(state, prompts)
    for _ in range(30):
        decode_step(state, PerRequest(), requests)
    for request, prompt in zip(requests, prompts, strict=True):
        assert request.tokens == greedy(backbone.model, prompt, len(request.tokens))
    assert state.graphs.captures < 60


def test_batch_rows_without_a_request_change_nothing_of_their_slots() -> None:
    backbone = taped_backbone()
    state = taped_state(backbone, small_heads("hydra", backbone), slots=4)
    prompts = [small_prompt(length, seed=length) for length in (3, 17, 9)]
    policy = SequencePolicy([TREES["bushy"], TREES["root"], TREES["chain"], TREES["wide"]], 8)
    state.prefill(3, small_prompt(state.capacity))  # no tree fits after it, and it exceeds the others' KV range

    def contents() -> list[torch.Tensor]:
        assert state.drafter is not None
        return [state.root[3], state.drafter.states[3], *(pool[:, 3, :, 1:] for pool in state.cache.pools.values())]

    before = [each.clone() for each in contents()]
    requests = running(state, prompts)
    for request in requests:
        request.policy_state = policy.start()
    for _ in range(30):
        decode_step(state, policy, requests)
    for request, prompt in zip(requests, prompts, strict=True):
        assert request.tokens == greedy(backbone.model, prompt, len(request.tokens))
        assert any(step.path for step in request.completion.steps)
    assert all(map(torch.equal, contents(), before))
    assert state.cache.lengths[3] == int(state.cache.table.device_lengths[3]) == state.capacity
    assert state.graphs.disabled_reason is None
    assert captured_batch_sizes(state) == {4}


@given(st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=examples(per_hundred=8))
def test_requests_that_come_and_go_replay_the_graphs_of_few_numbers(rng: random.Random, drawing: bool) -> None:
    backbone = taped_backbone()
    sizes = {"slots": 6, "context": 128, "prefill_tokens": 7}
    policy = SequencePolicy([TREES["bushy"], TREES["root"], TREES["chain"], TREES["wide"]], 8)
    engine = Engine(backbone, small_heads("hydra", backbone), policy, EngineSettings.parse(**sizes))
    state = engine.runner.state
    state.graphs = Graphs(Taped())
    if drawing:
        engine.submit(Request("drawn", small_prompt(5), SamplingParams(seed=1, max_tokens=20)))
    prompts = [small_prompt(rng.randint(1, 25), seed=at) for at in range(12)]
    lengths = [rng.randint(1, 20) for _ in prompts]
    for at, completion in come_and_go(engine, prompts, lengths, rng).items():
        assert completion.tokens == greedy(backbone.model, prompts[at], lengths[at])
    assert state.graphs.disabled_reason is None
    assert captured_batch_sizes(state) <= {1, 2, 4, 6}


@pytest.mark.parametrize("kind", ["hydra", "prefix"])
def test_what_is_sampled_between_graphs_is_committed_by_them(kind: str) -> None:
    backbone = taped_backbone()
    heads = small_heads("hydra", backbone) if kind == "hydra" else random_hydra_plus_plus_heads(backbone)
    prompts = [small_prompt(length, seed=length) for length in (3, 9)]
    policy = StaticPolicy(TREES["bushy"], 8)

    def texts(state: DecodingState) -> list[list[int]]:
        requests = running(state, prompts)
        for turn in range(40):
            if turn == 5:  # greedily at first, so that there are graphs that know of nothing else
                for seed, request in enumerate(requests):
                    request.sampler = Sampler(SamplingParams(seed=seed, top_p=0.9))
            decode_step(state, policy, requests)
        return [request.tokens for request in requests]

    taped = taped_state(backbone, heads, slots=2)
    assert texts(taped) == texts(DecodingState(backbone, heads, slots=2, capacity=512))
    assert taped.graphs.disabled_reason is None


def test_a_growing_context_needs_a_capture_every_so_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "ROUNDED_ROWS", 16)
    backbone = taped_backbone()
    state = taped_state(backbone, None, slots=1)
    policy = SequencePolicy([Topology.root_only()], 8)
    (request,) = running(state, [small_prompt(5)])
    request.policy_state = policy.start()
    captures = []
    for _ in range(60):
        decode_step(state, policy, [request])
        captures.append(state.graphs.captures)
    assert request.tokens == greedy(backbone.model, small_prompt(5), 60)
    # Captures on the second run: a draft once; verify, accept and compact for each 16 rows of the 66.
    assert captures[:2] == [0, 4]
    assert captures[-1] == 1 + 3 * 5
    assert len(set(captures)) == 1 + 5


@pytest.mark.parametrize("kind", ["hydra", "features"])
def test_results_take_the_same_memory_however_many_parts_are_captured(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "ROUNDED_ROWS", 16)
    backbone = taped_backbone()
    heads = small_heads(kind, backbone) if kind == "hydra" else feature_heads(backbone, layers=(0, 1))
    state = taped_state(backbone, heads, slots=2)
    generator = random.Random(0)
    policy = SequencePolicy([drawn_tree(generator) for _ in range(5)], 8)
    prompts = [small_prompt(5), small_prompt(9)]
    both = running(state, prompts)
    for sequence in both:
        sequence.policy_state = policy.start()
    for requests in (both, both[:1]):
        for _ in range(30):
            decode_step(state, policy, requests)
    for sequence, prompt in zip(both, prompts, strict=True):
        assert sequence.tokens == greedy(backbone.model, prompt, len(sequence.tokens))
    verified = [key for key in state.graphs._captured if isinstance(key, tuple) and key[0] == "verify"]
    results = [output for key in verified for output in state.graphs._captured[key].outputs]
    assert len(results) > 3 * 10
    memory = {output.untyped_storage().data_ptr(): output.untyped_storage().nbytes() for output in results}
    a_row = SMALL_VOCAB + backbone.hidden_size * (1 + len(heads.feature_layers))
    assert sum(memory.values()) == 2 * 64 * a_row * 4
    assert len(memory) == (3 if heads.feature_layers else 2)


def test_memory_of_results_grows_with_a_larger_tree_and_earlier_graphs_go_on() -> None:
    backbone = taped_backbone()
    state = taped_state(backbone, small_heads("hydra", backbone), slots=1)
    large = Topology.of([(first, *rest) for first in range(8) for rest in [(), *((second,) for second in range(8))]])
    policy = SequencePolicy([*[TREES["bushy"]] * 3, *[large] * 3], 8)
    (request,) = running(state, [small_prompt(5)])
    request.policy_state = policy.start()
    sizes = []
    for _ in range(18):
        decode_step(state, policy, [request])
        sizes.append(len(state.graphs._shared_buffers["logits"]) // SMALL_VOCAB)
    assert sizes == [64] * 3 + [128] * 15
    assert request.tokens == greedy(backbone.model, small_prompt(5), len(request.tokens))
    assert request.completion.steps[-4].is_steady, "the smaller tree's graph"


def test_only_replayed_steps_tell_what_steps_cost() -> None:
    class Watching(SequencePolicy):
        observed = 0

        def observe(self, topologies: GenericSequence[Topology], ms: Mapping[str, float]) -> None:
            self.observed += 1

    backbone = taped_backbone()
    seen = []
    for state in (taped_state(backbone, None, slots=1), DecodingState(backbone, None, slots=1, capacity=512)):
        policy = Watching([Topology.root_only()], 8)
        (request,) = running(state, [small_prompt(5)])
        request.policy_state = policy.start()
        for _ in range(6):
            decode_step(state, policy, [request])
        seen.append(policy.observed)
    assert seen == [4, 6]


def part_of(work: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[TreeBatch], tuple[torch.Tensor]]:
    return lambda trees: (work(trees.rank),)


@pytest.mark.parametrize(
    "work",
    [lambda ranks: ranks + int(ranks.max()), lambda ranks: ranks[ranks > 0], lambda ranks: ranks.nonzero()],
    ids=["item", "boolean index", "nonzero"],
)
def test_a_part_that_makes_the_host_wait_is_run_as_it_is(work: Callable[[torch.Tensor], torch.Tensor]) -> None:
    graphs = Graphs(Taped())
    trees = graphs.stage_inputs(TreeBatch.of([TREES["wide"]], rounded=True))
    for disabled in (False, True, True):
        (result,) = graphs.run("part", part_of(work), trees)
        assert torch.equal(result, work(trees.rank))
        assert (graphs.disabled_reason is not None) == disabled
    assert graphs.disabled_reason is not None
    assert graphs.disabled_reason.startswith("operation not permitted")
    assert (graphs.active, graphs.captures) == (False, 0)


def test_a_captured_part_reads_the_trees_loaded_last_and_runs_no_python() -> None:
    graphs = Graphs(Taped())
    runs = []

    def part(trees: TreeBatch) -> tuple[torch.Tensor, ...]:
        runs.append(trees)
        return trees.rank.sum(1), trees.ancestors.sum((1, 2))

    for name in ("wide", "chain") * 3:
        tree = Topology.of(sorted(TREES[name].paths, key=len)[:3])
        trees = graphs.stage_inputs(TreeBatch.of([tree], rounded=True))
        ranks, ancestors = graphs.run(trees.shape, part, trees)
        assert (int(ranks), int(ancestors)) == (int(tree.rank.sum()), int(tree.ancestors.sum()))
    # Twice for each of the two shapes: the first time as it is, the second for the capture.
    assert (len(runs), graphs.captures) == (4, 2)


def test_without_a_capturer_parts_are_plain_calls() -> None:
    graphs = Graphs.on([torch.device("cpu")])
    trees = TreeBatch.of([TREES["wide"]])
    assert graphs.stage_inputs(trees) is trees
    for _ in range(2):
        (ranks,) = graphs.run("part", lambda trees: (trees.rank,), trees)
        assert ranks is trees.rank
    assert (graphs.captures, graphs.active) == (0, False)
