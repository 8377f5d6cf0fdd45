"""Engines that a suite's prompts share: no capture lies in a timed step, and nothing of one prompt helps another."""

import gc
import logging
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch

from entmtp.decoding.graphs import Graphs
from entmtp.decoding.outputs import Completion
from entmtp.evaluation.results.rows import RequestRow, StepRow
from entmtp.evaluation.run import arm_engines
from entmtp.evaluation.run.arm_engines import MOST_WARM_RUNS, ArmEngines
from entmtp.evaluation.run.arms import Foresight, Toolbox, make_policy
from entmtp.evaluation.run.units import Unit, make_units
from entmtp.evaluation.run.worker import Worker, WorkerConfig
from entmtp.heads.checkpoint import load_heads
from entmtp.models.build import build_backbone
from entmtp.models.kernels.choices import CHOICES
from entmtp.policies.base import Policy
from entmtp.settings import BenchmarkSettings, SamplingParams
from entmtp.suites import MIXED, Prompt
from tests.helpers.saved_project import Saved, save_project
from tests.helpers.stateless_arms import LOSSLESS
from tests.helpers.taped_graphs import Taped
from tests.helpers.tiny_models import STATELESS_KINDS

SETTINGS = BenchmarkSettings(prompts=2, max_new_tokens=20, repetitions=2, shard_prompts=1)
ARMS = ("autoregressive", "medusa", "hydra", "entmtp", "entmtp-dynamic", "random", "bank-oracle", "hindsight")
QUESTION = Prompt("custom/0", "custom", "Tell me.", {})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def units(saved: Saved) -> list[Unit]:
    return make_units(["gsm8k"], {"gsm8k": str(saved.data("gsm8k"))}, ARMS, SETTINGS, {})


@pytest.fixture(scope="module")
def config(saved: Saved) -> WorkerConfig:
    tasks = dict.fromkeys(("gsm8k", "custom", MIXED), "gsm8k") | {"sharegpt": "sharegpt"}
    banks = {
        task: {kind: str(saved.banks / f"{made}-{kind}.json") for kind in STATELESS_KINDS}
        for task, made in tasks.items()
    }
    heads = {kind: str(saved.heads(kind)) for kind in STATELESS_KINDS}
    return WorkerConfig(str(saved.model), heads, banks, "cpu", torch.get_num_threads())


@pytest.fixture(scope="module")
def loaded(config: WorkerConfig) -> Worker:
    return Worker(config, say=lambda text: None)


@pytest.fixture
def worker(loaded: Worker) -> Iterator[Worker]:
    """The worker without engines of other tests."""
    yield loaded
    loaded._release_engines()


@pytest.fixture
def taped(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """A worker whose engines capture their steps by the rules of CUDA graphs."""
    backbone = build_backbone(worker.model, kernels="eager")
    heads = {kind: load_heads(source, backbone) for kind, source in worker.config.heads.items()}
    monkeypatch.setattr(worker, "backbone", backbone)
    monkeypatch.setattr(worker, "heads", heads)
    monkeypatch.setattr(Graphs, "on", classmethod(lambda graphs, device: graphs(Taped())))
    return worker


def requests_of(worker: Worker, unit: Unit, arms: Sequence[str] = ARMS) -> list[RequestRow]:
    outcome = worker.run(unit, arms, SETTINGS)
    assert not outcome.failures
    return [RequestRow(**row) for row in outcome.requests.to_pylist()]


def graphs_of(worker: Worker) -> dict[str | None, Graphs]:
    """By kind of heads."""
    assert worker._engines is not None
    return {kind: engine.runner.state.graphs for kind, engine in worker._engines._engines.items()}


def custom(*prompts: Prompt) -> Unit:
    return Unit("key", 0, "custom", "file", prompts)


def test_no_capture_lies_in_a_timed_step_and_prompts_share_their_graphs(taped: Worker, units: list[Unit]) -> None:
    seen: list[dict[str | None, Graphs]] = []
    for unit in units:
        for row in requests_of(taped, unit):
            assert (row.captures, row.unsettled_steps, row.identical) == (0, 0, True)
        seen.append(graphs_of(taped))
    assert all(graphs.captures and graphs.disabled_reason is None for graphs in seen[0].values())
    assert seen[0] == seen[1], "a prompt of the same suite needs no other engines"


def test_without_the_warm_up_timed_steps_hold_captures(
    taped: Worker, units: list[Unit], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ArmEngines, "warm_up", lambda *request: None)
    rows = requests_of(taped, units[0])
    captures = [graphs.captures for graphs in graphs_of(taped).values()]
    assert sum(row.captures for row in rows) == sum(captures)
    assert all(captures)
    # Each part runs once as it is, and is then captured.
    assert sum(row.unsettled_steps >= 2 for row in rows) >= len(captures)


def test_warming_up_ends_where_it_never_would(
    taped: Worker, units: list[Unit], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs = []

    def restless(engines: ArmEngines, arm: str, ids: Sequence[int], params: SamplingParams) -> Completion:
        runs.append(params)
        completion = arm_engines.complete(engines.engine(arm), ids, params)
        completion.steps = [replace(step, is_steady=False) for step in completion.steps]
        return completion

    monkeypatch.setattr(ArmEngines, "complete", restless)
    with caplog.at_level(logging.WARNING, logger=arm_engines.__name__):
        requests_of(taped, units[0], ["hydra"])
    assert len(runs) == MOST_WARM_RUNS + SETTINGS.repetitions
    assert {params.max_tokens for params in runs} == {SETTINGS.max_new_tokens}
    assert "hydra: after 5 untimed runs its steps still need new CUDA graphs" in caplog.text


def test_no_prompt_is_read_from_the_text_of_an_earlier_one(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    reused = []

    def complete(engines: ArmEngines, arm: str, ids: Sequence[int], params: SamplingParams) -> Completion:
        completion = arm_engines.complete(engines.engine(arm), ids, params)
        reused.append(completion.reused_tokens)
        return completion

    monkeypatch.setattr(ArmEngines, "complete", complete)
    longer = replace(QUESTION, id="custom/1", text=f"{QUESTION.text} Tell me more.")
    requests_of(worker, custom(QUESTION, longer))
    assert len(reused) > 2 * len(ARMS) * SETTINGS.repetitions
    assert set(reused) == {0}


def test_what_arms_do_on_a_prompt_is_the_same_after_others(worker: Worker, units: list[Unit]) -> None:
    def walks(*prompts: Prompt) -> list[tuple[str, str, list[int]]]:
        steps = worker.run(custom(*prompts), ARMS, SETTINGS).steps.to_pylist()
        rows = [StepRow(**step) for step in steps if step["prompt_id"] == QUESTION.id]
        return [(row.arm, row.tree, row.accepted_path) for row in rows]

    others = [replace(QUESTION, id=f"other/{at}", text=unit.prompts[0].text) for at, unit in enumerate(units)]
    after = sorted(walks(*others, QUESTION))
    worker._release_engines()
    assert after == sorted(walks(QUESTION))


def test_no_policy_of_an_arm_learns_from_what_steps_took(worker: Worker) -> None:
    tools: Toolbox = replace(worker._toolbox("gsm8k", LOSSLESS), foreign={})
    tools = replace(tools, foreign=dict.fromkeys(("entmtp-transfer", "entmtp-mixed"), tools.banks))
    ids = [1, 2, 3]
    reference = worker._reference(ids, SamplingParams(temperature=0.0, max_tokens=8), tools)
    assert reference.trace is not None
    foresight = Foresight(reference.trace, Completion(), "seed")
    for arm in LOSSLESS:
        assert type(make_policy(arm, tools, foresight)).observe is Policy.observe, arm


def test_engines_of_another_suite_take_the_memory_of_the_last_and_failures_clear_it(
    worker: Worker, units: list[Unit]
) -> None:
    requests_of(worker, units[0], ["hydra", "entmtp"])
    assert worker._engines is not None
    (cache,) = [weakref.ref(engine.runner.state.cache) for engine in worker._engines._engines.values()]
    gc.disable()  # no cycle keeps them until some later collection
    try:
        requests_of(worker, custom(QUESTION), ["hydra", "entmtp"])
        assert cache() is None
    finally:
        gc.enable()
    assert worker._engines.suite == "custom"
    outcome = worker.run(custom(replace(QUESTION, text="x" * 4096)), ["hydra", "entmtp"], SETTINGS)
    assert outcome.failures
    assert worker._engines is None


def test_engines_without_draft_caches_take_turns_on_one_cache(worker: Worker, units: list[Unit]) -> None:
    requests_of(worker, units[0], ["autoregressive", "medusa", "hydra"])
    assert worker._engines is not None
    caches = {kind: engine.runner.state.cache for kind, engine in worker._engines._engines.items()}
    assert set(caches) == {None, "medusa", "hydra"}
    assert len({id(cache) for cache in caches.values()}) == 1


def test_a_workers_heads_only_draft(worker: Worker) -> None:
    rounds = CHOICES[worker.backbone.kernels].fuses
    assert {kind: heads.only_drafts for kind, heads in worker.heads.items()} == dict.fromkeys(STATELESS_KINDS, rounds)


def test_a_longer_prompt_gets_larger_engines_and_a_shorter_one_keeps_them(worker: Worker) -> None:
    contexts = []
    for length in (8, 200, 8):
        requests_of(worker, custom(replace(QUESTION, text="x" * length)), ["hydra"])
        assert worker._engines is not None
        contexts.append(worker._engines.context)
    short, long, after = contexts
    assert short < 200 + SETTINGS.max_new_tokens <= long == after
    assert long & (long - 1) == 0
