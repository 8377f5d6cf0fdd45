"""What only a GPU runs: real captured graphs, its own kernels, pinned copies, events."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from entmtp.decoding.engine import Engine
from entmtp.decoding.measure_cost import machine_cost
from entmtp.decoding.outputs import PARTS
from entmtp.decoding.request import Request
from entmtp.decoding.state import DecodingState
from entmtp.evaluation.run.units import make_units
from entmtp.evaluation.run.worker import Worker, WorkerConfig
from entmtp.heads.base import DraftHeads
from entmtp.heads.checkpoint import BUNDLED_KINDS, bundled_heads, load_heads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.loading.load import encode_chat, load_model
from entmtp.policies.base import Policy
from entmtp.policies.dynamic import DynamicPolicy
from entmtp.policies.policy_cost import FixedCost
from entmtp.policies.static import SequencePolicy, StaticPolicy
from entmtp.settings import BenchmarkSettings, EngineSettings
from entmtp.trees.published import published_tree
from entmtp.trees.topology import Topology
from tests.helpers.arrivals import come_and_go
from tests.helpers.heads_with_caches import DRAFT_CACHE_KINDS, check_draft_cache, draft_cache_heads, draft_cache_model
from tests.helpers.native_models import MTP_TYPES
from tests.helpers.sampled_texts import PROMPT, SHAPED, drawn, exact, p_value
from tests.helpers.saved_project import SUITES, save_project
from tests.helpers.small_cases import (
    SMALL_VOCAB,
    single_engine,
    small_chances,
    small_cost,
    small_heads,
    small_predictor,
    small_prompt,
)
from tests.helpers.stateless_arms import DEFAULT
from tests.helpers.tiny_models import STATELESS_KINDS, SUPPORTED, TREES, VOCAB, greedy, random_heads, tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")

GPU = "cuda"
CONTEXT = 1024
ROUTED = ("mixtral", "gpt_oss", *MTP_TYPES)
"""Mixtures of experts: in float32 PyTorch's products of many experts ask the host, so that they run without graphs."""
POLICIES: dict[str, Policy] = {
    "static": StaticPolicy(TREES["bushy"], 8),
    "sequence": SequencePolicy([TREES["bushy"], TREES["root"], TREES["chain"], TREES["wide"]], 8),
    "dynamic": DynamicPolicy(
        small_predictor(), small_chances(), FixedCost(lambda batch, context: small_cost(0.01, 0.01)), 8
    ),
}


def on_gpu(model: PreTrainedModel) -> PreTrainedModel:
    torch.nn.Module.to(model, GPU)
    return model


def small_model(architecture: str = "llama") -> PreTrainedModel:
    return on_gpu(tiny_model(architecture, vocab_size=SMALL_VOCAB, max_position_embeddings=CONTEXT))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build_backbone(small_model())


@pytest.fixture(scope="module")
def heads(backbone: Backbone) -> DraftHeads:
    return small_heads("hydra", backbone)


@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("kind", STATELESS_KINDS)
@pytest.mark.parametrize("architecture", SUPPORTED)
def test_the_output_is_the_models_own_greedy_text(architecture: str, kind: str, policy: str) -> None:
    model = small_model(architecture)
    backbone = build_backbone(model)
    engine = single_engine(backbone, small_heads(kind, backbone), POLICIES[policy])
    prompt = small_prompt(9)
    for _ in range(3):  # what came twice is replayed
        done = engine.generate(prompt, 120)
        assert done.tokens == greedy(model, prompt, 120)
    assert done.tau > 1.05, "nothing was accepted: the case shows nothing"
    state = engine.runner.state
    assert state.graphs.disabled_reason is None or architecture in ROUTED


def test_experts_are_captured_in_bfloat16() -> None:
    backbone = build_backbone(small_model("mixtral").bfloat16())
    engine = single_engine(backbone, None, StaticPolicy(Topology.root_only(), 8))
    for _ in range(3):
        engine.generate(small_prompt(9), 20)
    state = engine.runner.state
    assert state.graphs.disabled_reason is None
    assert state.graphs.captures > 0


def test_graphs_are_captured_once_per_shape(backbone: Backbone, heads: DraftHeads) -> None:
    engine = single_engine(backbone, heads, POLICIES["sequence"])
    captures = []
    for _ in range(4):
        engine.generate(small_prompt(9), 60)
        state = engine.runner.state
        captures.append(state.graphs.captures)
    assert 0 < captures[2] == captures[3]


@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("seed", range(3))
def test_sixteen_requests_that_come_and_go_write_what_each_writes_alone(
    seed: int, policy: str, backbone: Backbone, heads: DraftHeads
) -> None:
    rng = random.Random(seed)
    sizes = {"slots": 4, "context": 128, "prefill_tokens": 7}
    engine = Engine(backbone, heads, POLICIES[policy], EngineSettings.parse(**sizes))
    shared = small_prompt(6, seed=50)
    prompts = [
        [*(shared if rng.random() < 0.5 else []), *small_prompt(rng.randint(1, 25), seed=at)] for at in range(16)
    ]
    lengths = [rng.randint(1, 20) for _ in prompts]
    done = come_and_go(engine, prompts, lengths, rng)
    for at, completion in done.items():
        assert completion.tokens == greedy(backbone.model, prompts[at], lengths[at])
    state = engine.runner.state
    assert state.graphs.disabled_reason is None


@pytest.mark.parametrize("policy", list(POLICIES))
def test_sampled_texts_come_as_often_as_the_model_would_write_them(
    policy: str, backbone: Backbone, heads: DraftHeads
) -> None:
    counts = drawn(backbone, heads, POLICIES[policy], SHAPED, batch=4, draws=2_000)
    assert p_value(counts, exact(backbone, SHAPED)) > 1e-3


def test_one_seed_writes_one_text_alone_and_in_company(backbone: Backbone, heads: DraftHeads) -> None:
    def text(others: int) -> list[int]:
        engine = Engine(backbone, heads, POLICIES["dynamic"], EngineSettings(slots=4, context=128))
        params = SHAPED.model_copy(update={"seed": 7, "max_tokens": 40})
        first = engine.submit(Request("first", PROMPT, params))
        for at in range(others):
            engine.submit(Request(str(at), small_prompt(4, seed=at), params.model_copy(update={"seed": at})))
        while not engine.idle:
            engine.step()
        return list(first.tokens)

    assert text(0) == text(3)


@pytest.mark.parametrize("kind", DRAFT_CACHE_KINDS)
@pytest.mark.parametrize("policy", list(POLICIES))
def test_heads_that_remember_write_the_models_text_and_remember_what_was_kept(kind: str, policy: str) -> None:
    model = on_gpu(draft_cache_model(kind))
    backbone = build_backbone(model)
    engine = single_engine(backbone, draft_cache_heads(kind, backbone), POLICIES[policy])
    prompt = small_prompt(9)
    assert engine.generate(prompt, 50).tokens == greedy(model, prompt, 50)
    state, slots = engine.runner.state, engine.scheduler.slots
    assert state.graphs.disabled_reason is None or kind in ROUTED
    check_draft_cache(state, 0, slots.cached_prefixes[0][1])


def test_the_cost_of_steps_is_measured_with_events(tmp_path: Path) -> None:
    backbone = build_backbone(on_gpu(tiny_model("llama")))
    heads = random_heads("hydra", backbone, draft_vocab_size=VOCAB).attach(backbone)
    cost = machine_cost(backbone, heads, tmp_path, lambda text: None, slots=2)
    assert torch.cuda.get_device_name() in cost.table(1).typical.hardware
    done = single_engine(backbone, heads, StaticPolicy(TREES["bushy"], 8)).generate(small_prompt(9), 20)
    assert all(getattr(step, f"{part}_ms") > 0 for step in done.steps for part in PARTS)


@pytest.mark.parametrize("kind", BUNDLED_KINDS)
def test_the_bundled_model_writes_its_own_text(kind: str) -> None:
    model, tokenizer = load_model("bundled", device=GPU)
    backbone = build_backbone(model)
    heads = load_heads(bundled_heads(kind), backbone)
    deep = Topology.of([(0,) * depth for depth in range(1, heads.num_heads + 1)])
    policy = SequencePolicy([published_tree(), Topology.root_only(), deep], 8)
    engine = single_engine(backbone, heads, policy)
    for question in ("What is the capital of France?", "Write a Python function that adds two numbers."):
        ids = encode_chat(tokenizer, question)
        assert engine.generate(ids, 64).tokens == greedy(model, ids, 64)
    state = engine.runner.state
    assert state.graphs.disabled_reason is None


def test_no_capture_lies_in_a_timed_step_of_a_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTMTP_CACHE", str(tmp_path / "cache"))
    saved = save_project(tmp_path)
    banks = {suite: {kind: str(saved.banks / f"{suite}-{kind}.json") for kind in STATELESS_KINDS} for suite in SUITES}
    heads = {kind: str(saved.heads(kind)) for kind in STATELESS_KINDS}
    worker = Worker(WorkerConfig(str(saved.model), heads, banks, GPU, 1))
    settings = BenchmarkSettings(prompts=2, max_new_tokens=40)
    files = {suite: str(saved.data(suite)) for suite in SUITES}
    for unit in make_units(SUITES, files, DEFAULT, settings, {}):
        outcome = worker.run(unit, DEFAULT, settings)
        assert not outcome.failures
        assert outcome.metadata["peak_device_memory_mib"] > 0
        for row in outcome.requests.to_pylist():
            assert (row["arm"], row["captures"], row["unsettled_steps"]) == (row["arm"], 0, 0)


def test_the_state_lies_on_the_gpu_alone(backbone: Backbone, heads: DraftHeads) -> None:
    state = DecodingState(backbone, heads, slots=2, capacity=64)
    assert {pool.device.type for pool in state.cache.pools.values()} == {GPU}
    assert state.drafter is not None
    assert {state.root.device.type, state.drafter.states.device.type} == {GPU}
