import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models

from entmtp import methods
from entmtp.decoding.engine import Engine
from entmtp.decoding.outputs import Completion
from entmtp.evaluation.results.rows import RequestRow, StepRow
from entmtp.evaluation.run import arm_engines
from entmtp.evaluation.run import worker as worker_module
from entmtp.evaluation.run.arm_engines import complete
from entmtp.evaluation.run.arms import Toolbox, params_of, quick_arms, with_heads
from entmtp.evaluation.run.completion_rows import request_row
from entmtp.evaluation.run.reference import first_difference, truncate_at_stop
from entmtp.evaluation.run.units import Unit, make_units
from entmtp.evaluation.run.work_queue import UnitOutcome
from entmtp.evaluation.run.worker import Worker, WorkerConfig, text_params
from entmtp.models import transformers_model
from entmtp.models.loading.load import encode_chat, load_model
from entmtp.policies.step_cost import StepCost, hardware_name
from entmtp.settings import PAPER_TEMPERATURE, BenchmarkSettings, SamplingParams
from entmtp.suites import MIXED, Prompt, get_suite
from entmtp.trees.bank import TreeBank
from tests.helpers.gguf_files import write_model
from tests.helpers.saved_project import Saved, save_project
from tests.helpers.stateless_arms import LOSSLESS
from tests.helpers.tiny_models import STATELESS_KINDS, greedy, plain_logits

SETTINGS = BenchmarkSettings(prompts=2, max_new_tokens=24, repetitions=2, shard_prompts=1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def config(saved: Saved) -> WorkerConfig:
    tasks = dict.fromkeys(("gsm8k", "gsm8k-2-shot", "custom", MIXED), "gsm8k") | {"sharegpt": "sharegpt"}
    banks = {
        task: {kind: str(saved.banks / f"{made}-{kind}.json") for kind in STATELESS_KINDS}
        for task, made in tasks.items()
    }
    heads = {kind: str(saved.heads(kind)) for kind in STATELESS_KINDS}
    return WorkerConfig(str(saved.model), heads, banks, "cpu", torch.get_num_threads())


@pytest.fixture(scope="module")
def worker(config: WorkerConfig) -> Worker:
    return Worker(config, say=lambda text: None)


@pytest.fixture(scope="module")
def units(saved: Saved) -> list[Unit]:
    return make_units(["gsm8k"], {"gsm8k": str(saved.data("gsm8k"))}, LOSSLESS, SETTINGS, {})


@pytest.fixture(scope="module")
def outcomes(worker: Worker, units: list[Unit]) -> list[UnitOutcome]:
    return [worker.run(unit, LOSSLESS, SETTINGS) for unit in units]


def requests_of(outcome: UnitOutcome) -> list[RequestRow]:
    return [RequestRow(**row) for row in outcome.requests.to_pylist()]


def steps_of(outcome: UnitOutcome) -> list[StepRow]:
    return [StepRow(**row) for row in outcome.steps.to_pylist()]


def test_every_arm_runs_every_prompt_as_often_as_requested(outcomes: list[UnitOutcome]) -> None:
    for outcome in outcomes:
        assert Counter(row.arm for row in requests_of(outcome)) == dict.fromkeys(LOSSLESS, SETTINGS.repetitions)
        assert len({row.prompt_id for row in requests_of(outcome)}) == 1
        measured = outcome.metadata
        assert measured["peak_memory_mib"] > 10
        assert measured["hardware"] == hardware_name(torch.device("cpu"))
        assert {kind: StepCost.model_validate(cost) for kind, cost in measured["costs"].items()}.keys() == set(
            STATELESS_KINDS
        )
        assert outcome.busy_seconds > sum(row.seconds for row in requests_of(outcome))
        assert not outcome.failures


def test_a_suites_ladder_is_tuned_at_the_workers_costs_once(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned: list[object] = []

    def note(bank: TreeBank, cost: StepCost, say: object) -> TreeBank:
        tuned.append(cost)
        return bank.model_copy(update={"thresholds": [], "bins": [bank.overall]})

    monkeypatch.setattr("entmtp.evaluation.run.worker.retune", note)
    monkeypatch.setattr(worker, "_tuned", {})
    worker._measure_costs(["medusa-best", "entmtp"])
    for _ in range(2):
        tools = worker._toolbox("gsm8k", ["entmtp", "entmtp-mixed"])
    assert tuned == [worker._costs[kind] for kind in STATELESS_KINDS]
    assert [tools.banks[kind].bins for kind in STATELESS_KINDS] == [
        [tools.banks[kind].overall] for kind in STATELESS_KINDS
    ]


def test_the_model_of_the_reference_is_made_when_a_text_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    reference_model = transformers_model.reference_model

    def watched(model: Any) -> Any:
        made.append(model)
        return reference_model(model)

    monkeypatch.setattr(transformers_model, "reference_model", watched)
    path = write_model(tmp_path / "model.gguf", "llama", "Q8_0")
    worker = Worker(WorkerConfig(str(path), {}, {}, "cpu", 1), say=lambda text: None)
    assert not made
    assert greedy(worker.model, [5, 6], 4) == greedy(load_model(str(path))[0], [5, 6], 4)
    assert made


def test_steps_are_timed_only_with_heads_by_whose_cost_an_arm_chooses(config: WorkerConfig, units: list[Unit]) -> None:
    worker = Worker(config, say=lambda text: None)
    short = SETTINGS.model_copy(update={"max_new_tokens": 4, "repetitions": 1})
    for arms, kinds in (
        (["autoregressive", "medusa", "hydra", "always-big"], set()),
        (with_heads(quick_arms(), config.heads), {"hydra"}),
        (["medusa-best"], {"hydra", "medusa"}),
    ):
        outcome = worker.run(units[0], arms, short)
        assert not outcome.failures
        assert outcome.metadata["costs"].keys() == kinds


def test_every_arm_runs_once_for_warming_up_before_its_first_measured_run(
    worker: Worker, units: list[Unit], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[tuple[int, int]] = []
    engines: list[set[int]] = []

    def counted(engine: Engine, ids: list[int], params: SamplingParams) -> Completion:
        runs.append((id(engine), params.max_tokens))
        return complete(engine, ids, params)

    monkeypatch.setattr(arm_engines, "complete", counted)
    monkeypatch.setattr(worker, "_warm", set())
    arms = ["autoregressive", "hydra", "entmtp"]
    measured = len(arms) * SETTINGS.repetitions
    for unit, warming in ((units[0], 3), (units[1], 0)):  # once for each suite
        runs.clear()
        assert len(requests_of(worker.run(unit, arms, SETTINGS))) == measured
        assert [tokens for _, tokens in runs] == [8] * warming + [SETTINGS.max_new_tokens] * measured
        assert {engine for engine, _ in runs[:warming]} == ({engine for engine, _ in runs} if warming else set())
        engines.append({engine for engine, _ in runs})
    assert engines[0] == engines[1], "one for each arm and suite"


def test_arms_rotate_from_round_to_round_in_an_order_of_each_prompts_own(outcomes: list[UnitOutcome]) -> None:
    neighbours = set()
    for outcome in outcomes:
        rounds = [
            [row.arm for row in sorted(requests_of(outcome), key=lambda row: row.order) if row.repetition == repetition]
            for repetition in range(SETTINGS.repetitions)
        ]
        assert len({arms[0] for arms in rounds}) == SETTINGS.repetitions, "another arm comes first in each"
        for arms in rounds:
            turned = arms.index(rounds[0][0])
            assert [*arms[turned:], *arms[:turned]] == rounds[0]
        neighbours.add(tuple(rounds[0][(rounds[0].index("entmtp") + 1) % len(LOSSLESS) :][:1]))
    assert len(outcomes) == 1 or len(neighbours) > 1, "the arm after entmtp is not always the same"


def test_texts_are_the_models_own(outcomes: list[UnitOutcome], worker: Worker, units: list[Unit]) -> None:
    for unit, outcome in zip(units, outcomes, strict=True):
        ids = encode_chat(worker.tokenizer, unit.prompts[0].text)
        text = greedy(worker.model, ids, SETTINGS.max_new_tokens)
        for row in requests_of(outcome):
            assert row.token_ids == text
            assert (row.identical, row.first_difference) == (True, -1)
            assert math.isnan(row.tie_margin)
            assert (row.prompt_tokens, row.new_tokens, row.source) == (len(ids), len(text), "file")
            assert row.score in (0.0, 1.0)


def test_texts_are_scored_by_the_models_likelihood(
    outcomes: list[UnitOutcome], worker: Worker, units: list[Unit]
) -> None:
    for unit, outcome in zip(units, outcomes, strict=True):
        ids = encode_chat(worker.tokenizer, unit.prompts[0].text)
        for row in requests_of(outcome):
            logits = plain_logits(worker.model, [*ids, *row.token_ids[:-1]])[len(ids) - 1 :].log_softmax(-1)
            wanted = logits[torch.arange(row.new_tokens), torch.tensor(row.token_ids)].mean().item()
            assert row.log_likelihood == pytest.approx(wanted, abs=1e-5)
            assert wanted < -0.01, "or this would compare nothing"


def test_nothing_is_scored_before_the_last_measured_run(
    worker: Worker, units: list[Unit], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def counted(engine: Engine, ids: Sequence[int], params: SamplingParams) -> Completion:
        events.append("run")
        return complete(engine, ids, params)

    def row(*given: Any) -> RequestRow:
        events.append("score")
        return request_row(*given)

    monkeypatch.setattr(arm_engines, "complete", counted)
    monkeypatch.setattr(worker_module, "request_row", row)
    arms = ["autoregressive", "hydra"]
    worker.run(units[0], arms, SETTINGS)
    scored = len(arms) * SETTINGS.repetitions
    assert events[-scored:] == ["score"] * scored
    assert set(events[:-scored]) == {"run"}


def test_steps_add_up_to_their_request(outcomes: list[UnitOutcome]) -> None:
    for outcome in outcomes:
        for row in requests_of(outcome):
            own = [step for step in steps_of(outcome) if (step.arm, step.repetition) == (row.arm, row.repetition)]
            assert [step.step for step in own] == list(range(row.steps))
            assert sum(step.accepted for step in own) == row.new_tokens
            assert sum(step.nodes for step in own) == row.drafted
            assert [step.position for step in own] == [sum(s.accepted for s in own[:at]) for at in range(len(own))]
            assert sum(step.verify_ms for step in own) == pytest.approx(1e3 * row.verify_seconds)
            parts = row.prefill_seconds + row.draft_seconds + row.verify_seconds + row.accept_seconds
            assert parts + row.policy_seconds <= row.seconds
            for step in own:
                assert step.accepted <= 1 + len(step.accepted_path) <= 1 + step.depth


def test_repetitions_differ_in_nothing_but_time(outcomes: list[UnitOutcome]) -> None:
    for outcome in outcomes:
        for arm in LOSSLESS:
            walks = [
                [
                    (step.tree, step.accepted_path)
                    for step in steps_of(outcome)
                    if (step.arm, step.repetition) == (arm, repetition)
                ]
                for repetition in range(SETTINGS.repetitions)
            ]
            assert walks[0] == walks[1]


def test_a_difference_is_reported_with_its_index_and_margin(
    worker: Worker, units: list[Unit], monkeypatch: pytest.MonkeyPatch
) -> None:
    true = worker._reference
    wrong = 7

    def reference(ids: list[int], params: SamplingParams, tools: Toolbox) -> object:
        found = true(ids, params, tools)
        found.tokens[wrong] += 1
        return found

    monkeypatch.setattr(worker, "_reference", reference)
    arms = ["autoregressive", "hydra"]
    for row in requests_of(worker.run(units[0], arms, SETTINGS)):
        assert (row.identical, row.first_difference) == (False, wrong)
        assert row.tie_margin > 0


def test_a_prompt_that_fails_leaves_no_row_and_stops_no_other(worker: Worker, units: list[Unit]) -> None:
    endless = replace(units[0].prompts[0], id="endless", text="x" * 4096)
    task = replace(units[0], prompts=(endless, *units[0].prompts))
    outcome = worker.run(task, ["autoregressive", "hydra"], SETTINGS)
    assert set(outcome.failures) == {"endless"}
    assert outcome.failures["endless"].count("\n") == 0
    assert {row.prompt_id for row in requests_of(outcome)} == {units[0].prompts[0].id}


@pytest.mark.parametrize(
    ("ours", "theirs", "index"),
    [([1, 2], [1, 2], -1), ([1, 2], [1, 3], 1), ([1], [1, 2], 1), ([1, 2], [1], 1), ([], [], -1), ([5], [6], 0)],
)
def test_the_first_difference(ours: list[int], theirs: list[int], index: int) -> None:
    assert first_difference(ours, theirs) == index


def test_margins_are_the_models_top_two(worker: Worker) -> None:
    ids = encode_chat(worker.tokenizer, "Hello there")
    params = SamplingParams(temperature=0.0, max_tokens=12)
    reference = worker._reference(ids, params, worker._toolbox("gsm8k", []))
    logits = plain_logits(worker.model, [*ids, *reference.tokens[:-1]])[len(ids) - 1 :]
    top = logits.topk(2, dim=-1)
    assert top.indices[:, 0].tolist() == reference.tokens
    assert (top.values[:, 0] - top.values[:, 1]).tolist() == pytest.approx(reference.margins, abs=1e-3)


def prompts_unit(*prompts: Prompt) -> Unit:
    return Unit("key", 0, prompts[0].suite, "file", prompts)


def test_drawn_texts_are_one_text_for_all_lossless_arms(worker: Worker, units: list[Unit]) -> None:
    settings = SETTINGS.model_copy(update={"temperature": 1.0})
    greedy_tokens = requests_of(worker.run(units[0], ["autoregressive"], SETTINGS))[0].token_ids
    requests = requests_of(worker.run(units[0], [*LOSSLESS, *methods.lossy()], settings))
    plain = next(row.token_ids for row in requests if row.arm == "autoregressive")
    assert plain != greedy_tokens
    assert {row.arm for row in requests if row.token_ids == plain} >= set(LOSSLESS)
    assert all(row.identical for row in requests if row.arm in LOSSLESS)
    likelihoods = {row.log_likelihood for row in requests if row.arm in LOSSLESS}
    assert len(likelihoods) == 1
    assert all(row.log_likelihood not in likelihoods for row in requests if row.arm in methods.lossy())
    again = requests_of(worker.run(units[0], ["autoregressive"], settings))
    assert again[0].token_ids == plain, "the seed is the prompt's own"


def test_typical_acceptance_leaves_the_models_text_and_plain_decoding_does_not(
    worker: Worker, units: list[Unit]
) -> None:
    lossless = SETTINGS.model_copy(update={"temperature": 1.0})
    typical = lossless.model_copy(update={"acceptance": "typical"})
    plain = requests_of(worker.run(units[0], ["autoregressive"], lossless))[0].token_ids
    requests = requests_of(worker.run(units[0], ["autoregressive", "hydra"], typical))
    by_arm = {row.arm: row for row in requests}
    assert by_arm["autoregressive"].token_ids == plain
    assert by_arm["autoregressive"].identical
    assert not by_arm["hydra"].identical
    assert math.isnan(by_arm["hydra"].tie_margin), "a drawn text has no ties"


def test_the_seed_is_a_prompts_own_and_the_published_temperature_stands_in() -> None:
    settings = SETTINGS.model_copy(update={"temperature": 1.0})
    one, other = (text_params(Prompt(id, "gsm8k", "Hi", {}), settings) for id in ("a", "b"))
    assert one.seed != other.seed
    assert params_of("medusa-typical", one).temperature == 1.0
    medusa = params_of("medusa-typical", text_params(Prompt("a", "gsm8k", "Hi", {}), SETTINGS))
    assert (medusa.acceptance, medusa.temperature) == ("typical", PAPER_TEMPERATURE)
    assert params_of("hydra", one) == one


def test_earlier_turns_are_answered_by_the_model_itself(worker: Worker) -> None:
    given = (("user", "One."), ("assistant", "Two."), ("user", "Three."))
    prompt = Prompt("custom/0", "custom", "Four.", {}, given)
    outcome = worker.run(prompts_unit(prompt), ["autoregressive", "hydra"], SETTINGS)
    ids = encode_chat(worker.tokenizer, "Three.", given[:2])
    answer = worker.tokenizer.decode(greedy(worker.model, ids, SETTINGS.max_new_tokens), skip_special_tokens=True)
    history = [*given, ("assistant", str(answer).strip())]
    assert outcome.metadata["histories"] == {"custom/0": history}
    whole = encode_chat(worker.tokenizer, "Four.", history)
    for row in requests_of(outcome):
        assert row.prompt_tokens == len(whole)
        assert row.token_ids == greedy(worker.model, whole, SETTINGS.max_new_tokens)


def test_a_stop_text_ends_every_arm_and_the_reference(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = Prompt("gsm8k-2-shot/0", "gsm8k-2-shot", "What is 2 + 2?", {"answer": "#### 4"}, key="What is 2 + 2?")
    ids = encode_chat(worker.tokenizer, prompt.text)
    whole = greedy(worker.model, ids, SETTINGS.max_new_tokens)
    text = str(worker.tokenizer.decode(whole))
    stop = text[6:8]
    protocol = get_suite("gsm8k-2-shot").protocol
    monkeypatch.setattr(get_suite("gsm8k-2-shot"), "protocol", replace(protocol, stop=(stop,)))
    requests = requests_of(worker.run(prompts_unit(prompt), LOSSLESS, SETTINGS))
    assert len({len(row.token_ids) for row in requests}) == 1
    for row in requests:
        assert row.identical
        assert row.text == text[: text.index(stop)]
        assert row.token_ids == whole[: len(row.token_ids)] != whole


def test_no_stop_text_no_end() -> None:
    assert truncate_at_stop([1, 2], Tokenizer(models.BPE()), ("x",)) == [1, 2]
