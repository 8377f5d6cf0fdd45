"""Methods by name: which heads and banks each one runs with, and which one runs where none is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deployments.settings import EngineArgs
from entmtp import cli, llm, methods
from entmtp.calibration.thresholds import retune
from entmtp.errors import EntMTPError
from entmtp.evaluation.results.storage import open_store
from entmtp.evaluation.run.planning import make_plan
from entmtp.evaluation.run.worker import Worker
from entmtp.loading import load_method, open_session
from entmtp.method_spec import MethodSpec
from entmtp.methods import heads_of
from entmtp.models.loading.load import encode_chat, load_model
from entmtp.policies.ladder import LadderPolicy
from entmtp.policies.online_cost import OnlineStepCost
from entmtp.policies.step_cost import BatchedCost, CostTable
from entmtp.settings import CPU_METHOD, GPU_METHOD, EngineSettings, SamplingParams, default_method
from entmtp.trees.bank import load_bank
from entmtp.trees.tuning_texts import TuningTexts
from tests.helpers.calm_and_wild_texts import alternating_text
from tests.helpers.chained_models import save_chained
from tests.helpers.paths import ROOT
from tests.helpers.saved_project import Saved, save_project
from tests.helpers.small_cases import small_cost
from tests.helpers.stateless_arms import DEFAULT
from tests.helpers.tiny_models import STATELESS_KINDS, greedy
from tests.helpers.tokenizers import DECODERS, SPACE, ids, with_decoder

NEW_TOKENS = 16


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save_project(tmp_path_factory.mktemp("session"))


def method_of(saved: Saved, name: str, kind: str, **changes: Any) -> MethodSpec:
    given: dict[str, Any] = {"heads": str(saved.heads(kind)), "bank": saved.banks / f"gsm8k-{kind}.json"} | changes
    return MethodSpec(name, model=str(saved.model), **given)


@pytest.mark.parametrize("name", methods.adaptive())
@pytest.mark.parametrize("kind", STATELESS_KINDS)
def test_every_kind_of_heads_runs_every_policy(saved: Saved, kind: str, name: str) -> None:
    engine, tokenizer = load_method(method_of(saved, name, kind), lambda text: None, EngineSettings.for_one())
    assert engine.heads is not None
    assert engine.heads.kind == kind
    prompt = encode_chat(tokenizer, "What is 3 + 3?")
    model, _ = load_model(str(saved.model))
    done = engine.generate(prompt, NEW_TOKENS)
    assert done.tokens == greedy(model, prompt, NEW_TOKENS)


@pytest.mark.parametrize("name", ["entmtp", "entmtp-goodput"])
def test_a_ladder_is_tuned_at_this_machines_costs_and_says_where_it_can_not_be(
    saved: Saved, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = load_bank(saved.banks / "gsm8k-hydra.json")
    texts = TuningTexts.of([alternating_text(seed, telling=True) for seed in range(12)], max_rungs=4)
    bare, made = tmp_path / "bare.json", tmp_path / "made.json"
    shipped.model_copy(update={"tuning": None}).save(bare)
    shipped.model_copy(update={"tuning": texts, "thresholds": [], "bins": [shipped.overall]}).save(made)
    cost = small_cost(per_node=6.0)
    monkeypatch.setattr(
        "entmtp.loading.machine_cost", lambda *args: BatchedCost(measured={1: CostTable(contexts=[160], costs=[cost])})
    )
    said: list[str] = []
    load_method(method_of(saved, name, "hydra", bank=bare), said.append, EngineSettings.for_one())
    assert ["stores no calibration texts" in line for line in said] == [True] * (name == "entmtp")
    said.clear()
    engine, _ = load_method(method_of(saved, name, "hydra", bank=made), said.append, EngineSettings.for_one())
    assert said == []
    if name == "entmtp":
        assert isinstance(engine.policy.cost, OnlineStepCost)
        assert isinstance(engine.policy, LadderPolicy)
        assert list(engine.policy.ladder.thresholds) == retune(load_bank(made), cost, pytest.fail).thresholds != []


def test_methods_named_after_heads_refuse_others_and_say_which_do_not(saved: Saved) -> None:
    with pytest.raises(EntMTPError, match=r"holds medusa heads but the method needs hydra .* entmtp-goodput"):
        load_method(method_of(saved, "hydra-best", "medusa"), print, EngineSettings.for_one())


def test_a_missing_bank_is_reported_with_the_command_that_makes_it(saved: Saved) -> None:
    model = str(saved.model)
    with pytest.raises(EntMTPError, match=f"bank: none is shipped for model '{model}'.*--model {model} --heads KIND="):
        load_method(method_of(saved, "entmtp", "medusa", bank=None), print, EngineSettings.for_one())


@pytest.mark.parametrize("name", ["entmtp", "entmtp-dynamic", "bank-oracle", "hindsight", "random"])
def test_a_method_named_after_no_heads_takes_those_that_are_there(name: str) -> None:
    assert heads_of(name) == "eagle3"
    assert heads_of(name, ("medusa", "hydra")) == "hydra"
    assert heads_of(name, ("medusa",)) == "medusa"
    assert heads_of(name, ("native",)) == "native"
    assert heads_of("medusa-best", ("hydra",)) == "medusa"


def test_a_benchmark_of_medusa_heads_alone_has_all_policies(saved: Saved, tmp_path: Path) -> None:
    plan = make_plan(
        arms=[],
        heads=[f"medusa={saved.heads('medusa')}"],
        profile="standard",
        suites=["gsm8k"],
        model=str(saved.model),
        banks=saved.banks,
        data=[f"gsm8k={saved.data('gsm8k')}"],
        overrides={"prompts": 1, "max_new_tokens": 12, "repetitions": 1},
        results=open_store(str(tmp_path)),
        tracking_uri=None,
        device="cpu",
        threads=1,
    )
    assert set(plan.arms) == {arm for arm in DEFAULT if not arm.startswith("hydra")}
    requests = Worker(plan.config).run(plan.units[0], plan.arms, plan.settings).requests.to_pylist()
    assert {row["arm"] for row in requests} == set(plan.arms)
    assert all(row["identical"] for row in requests)


@pytest.mark.parametrize(
    ("device", "expected"), [("cpu", "entmtp-dynamic"), ("cuda", "entmtp-goodput"), ("balanced", "entmtp-goodput")]
)
def test_the_default_method_is_the_one_that_was_measured_fastest_on_the_device(
    device: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert default_method(device) == expected
    engine = {"name": "e", "model_name": "m", "device": device, "num_gpus": 0 if device == "cpu" else 2}
    assert EngineArgs.parse(**engine).method == EngineArgs.parse(**engine, method=None).method == expected
    assert EngineArgs.parse(**engine, method="hydra").method == "hydra"
    opened: list[MethodSpec] = []

    def note(method: MethodSpec, *args: object) -> Any:
        opened.append(method)
        raise EntMTPError("opened")

    monkeypatch.setattr("entmtp.loading.open_session", note)
    monkeypatch.setattr(llm, "load_method", note)
    with pytest.raises(SystemExit):
        cli.app(["generate", "Hello", "--device", device])
    with pytest.raises(EntMTPError, match="opened"):
        llm.LLM(device=device)
    assert [method.name for method in opened] == [expected] * 2


@pytest.mark.parametrize(
    ("template", "expected"), [(None, " Paris the capital"), ("{{ messages[0]['content'] }}", "Paris the capital")]
)
def test_only_without_a_chat_template_an_answer_goes_on_from_the_prompts_text(
    template: str | None, expected: str, tmp_path: Path
) -> None:
    tokenizer = with_decoder(DECODERS["byte fallback, strip"])
    chain = ids(tokenizer, "a", f"{SPACE}Paris", f"{SPACE}the", f"{SPACE}capital", "</s>")
    folder = str(save_chained(tmp_path, tokenizer, chain, template=template))
    params = SamplingParams(temperature=0, max_tokens=5)
    session = open_session(MethodSpec("autoregressive", model=folder), print)
    assert "".join(session.stream("a", params)) == session.completion.text == expected
    (answer,) = llm.LLM(folder, policy="autoregressive").generate("a", params)
    assert answer.text == expected


def test_help_and_docs_say_which_method_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.app(["generate", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"(default: {CPU_METHOD} on a CPU, {GPU_METHOD} on a GPU)" in shown
    docs = ROOT / "docs" / "README.md"
    assert f"`{CPU_METHOD}` on a CPU and `{GPU_METHOD}` on a GPU" in docs.read_text(encoding="utf-8")
