"""EAGLE-3 heads, eight levels deep: calibration to a bank, every method, and a benchmark, by saved files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from entmtp import LLM, methods
from entmtp.calibration.replay import FLAT, cost_of, replay_file, replayable
from entmtp.decoding.measure_cost import step_cost
from entmtp.errors import EntMTPError
from entmtp.evaluation.results.storage import open_store
from entmtp.evaluation.run.arms import Toolbox, default_arms, with_family
from entmtp.evaluation.run.planning import make_plan
from entmtp.evaluation.run.worker import Worker
from entmtp.heads.checkpoint import load_heads
from entmtp.heads.eagle3.configuration import DEPTH
from entmtp.loading import load_method
from entmtp.method_spec import MethodSpec
from entmtp.models.build import build_backbone
from entmtp.models.loading.load import encode_chat, load_model
from entmtp.persistent_paths import cache_folder
from entmtp.policies.step_cost import StepCost
from entmtp.settings import EngineSettings, SamplingParams
from entmtp.suites import load_suite, split
from entmtp.suites.splits import draw
from entmtp.trees.bank import MAX_NODES, TreeBank, load_bank
from tests.helpers.eagle3_heads import eagle3_heads, sure_eagle3
from tests.helpers.replayed_runs import check_replay_is_real
from tests.helpers.saved_project import VOCAB, calibrate_quietly, save_data, save_tokenizer
from tests.helpers.tiny_models import greedy, random_heads, tiny_model

NEW_TOKENS = 32
OFFERED = ("eagle3", "eagle3-best", "entmtp", "entmtp-goodput", "entmtp-dynamic")
COST = StepCost(
    nodes=[0, 63],
    verify_ms=[20.0, 30.0],
    narrow_draft_ms=[0.2 * depth for depth in range(1, DEPTH + 1)],
    wide_draft_ms=[0.3 * depth for depth in range(1, DEPTH + 1)],
    wide_nodes=63,
    hardware="test",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, heads that are sure of some tokens only, so that trees differ, and their bank."""
    folder = tmp_path_factory.mktemp("eagle3")
    model = tiny_model("llama", vocab_size=VOCAB, max_position_embeddings=512, tie_word_embeddings=True)
    backbone, heads = sure_eagle3(model, noise=0.4)
    model.save_pretrained(folder / "model")
    save_tokenizer(folder / "model")
    save_data(folder)
    saved = build_backbone(load_model(str(folder / "model"))[0])
    heads.config.model_fingerprint = saved.fingerprint
    heads.save_pretrained(folder / "heads")
    random_heads("hydra", backbone, vocab_size=VOCAB, draft_vocab_size=96).save_pretrained(folder / "hydra")
    calibrate_quietly("gsm8k", folder, [f"eagle3={folder / 'heads'}"], NEW_TOKENS)
    return folder


@pytest.fixture(scope="module")
def bank(folder: Path) -> TreeBank:
    return load_bank(folder / "banks" / "gsm8k-eagle3.json")


@pytest.fixture(scope="module")
def tools(folder: Path, bank: TreeBank) -> Toolbox:
    backbone = build_backbone(load_model(str(folder / "model"))[0])
    heads = load_heads(folder / "heads", backbone)
    return Toolbox(backbone, {"eagle3": heads}, {"eagle3": bank}, {"eagle3": COST})


def spec(folder: Path, name: str, **changes: Any) -> MethodSpec:
    given: dict[str, Any] = {"heads": str(folder / "heads"), "bank": folder / "banks" / "gsm8k-eagle3.json"}
    return MethodSpec(name, model=str(folder / "model"), **(given | changes))


def test_everything_in_a_bank_is_as_deep_as_the_heads(bank: TreeBank, tools: Toolbox) -> None:
    assert bank.provenance.heads_kind == "eagle3"
    assert len(bank.by_depth) == len(bank.chances.slope) == DEPTH == 8
    assert max(map(len, bank.overall.paths)) == 8
    assert max(map(len, bank.predictor.paths)) == 8
    assert bank.tuning is not None
    assert bank.tuning.heads == 8
    cost = step_cost(tools.backbone, tools.heads["eagle3"], cache_folder(), print)
    assert {len(each.narrow_draft_ms) for each in cost.costs} == {8}
    with pytest.raises(EntMTPError, match="has depth 5 but there are only 4 draft heads"):
        bank.check_depth(4)


@pytest.mark.parametrize("arm", OFFERED)
def test_a_replay_takes_the_steps_of_a_real_run(arm: str, folder: Path, tools: Toolbox) -> None:
    _, tokenizer = load_model(str(folder / "model"))
    suite = load_suite("gsm8k", folder / "gsm8k.jsonl")
    prompts = [encode_chat(tokenizer, prompt.text) for prompt in draw(split(suite.prompts)[0], 4, seed=0)]
    text = folder / "banks" / "text" / "gsm8k"
    check_replay_is_real(arm, "eagle3", tools, text, prompts, NEW_TOKENS)


def test_a_trace_file_is_replayed_with_the_policies_that_need_no_heads(folder: Path) -> None:
    trace, bank = folder / "banks" / "gsm8k-eagle3.trace.safetensors", folder / "banks" / "gsm8k-eagle3.json"
    assert "eagle2" not in replayable()
    found = replay_file(trace, bank, replayable(), cost_of(FLAT))
    assert found["hindsight"].tau >= found["best-static"].tau > 1.5
    with pytest.raises(
        EntMTPError, match="policy: 'eagle2' expands its trees with the heads, which a trace file lacks"
    ):
        replay_file(trace, bank, ["eagle2"], cost_of(FLAT))


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("name", OFFERED)
def test_every_method_writes_the_models_own_text(name: str, slots: int, folder: Path) -> None:
    bank = None if name == "eagle3" else str(folder / "banks" / "gsm8k-eagle3.json")
    settings = EngineSettings(slots=slots, context=256)
    llm = LLM(str(folder / "model"), policy=name, heads=str(folder / "heads"), bank=bank, settings=settings)
    prompts = [encode_chat(llm.tokenizer, text) for text in ("What is 3 + 3?", "Tell me more.", "And why?")]
    done = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS))
    model, _ = load_model(str(folder / "model"))
    assert [one.tokens for one in done] == [greedy(model, prompt, NEW_TOKENS) for prompt in prompts]
    assert max(one.tau for one in done) > 1.5 or name != "eagle3", "the others draft by what steps cost here"


@pytest.mark.parametrize("given", [{}, {"bank": None}], ids=["bank", "none"])
def test_eagle2_needs_neither_bank_nor_costs(
    given: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("entmtp.loading.machine_cost", lambda *args: pytest.fail("measured"))
    engine, _ = load_method(spec(folder, "eagle3", **given), pytest.fail, EngineSettings.for_one())
    assert engine.policy.cost is None


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("eagle3", {"heads": None}, "heads: none are shipped for model"),
        ("eagle3", {"heads": "hydra"}, "hydra holds hydra heads but the method needs eagle3 heads"),
        ("hydra", {}, "heads holds eagle3 heads but the method needs hydra heads"),
        ("eagle3-best", {"bank": None}, "bank: none is shipped for eagle3 heads of model .* --heads eagle3=FOLDER"),
        ("entmtp-dynamic", {"heads": "hydra"}, "bank: its heads_kind is eagle3, yours is hydra"),
        ("eagle3", {"heads": "foreign"}, "heads: they were trained for the model with fingerprint"),
    ],
)
def test_what_does_not_fit_is_told(
    name: str, changes: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    foreign = build_backbone(tiny_model("llama", seed=7, vocab_size=VOCAB))
    eagle3_heads(foreign).save_pretrained(tmp_path / "foreign")
    given = {
        key: str((tmp_path if value == "foreign" else folder) / value) if key == "heads" and value else value
        for key, value in changes.items()
    }
    method = MethodSpec(name, **({"model": str(folder / "model")} | _defaults(folder) | given))
    with pytest.raises(EntMTPError, match=message) as told:
        load_method(method, print, EngineSettings.for_one())
    assert "\n" not in str(told.value)


def _defaults(folder: Path) -> dict[str, Any]:
    return {"heads": str(folder / "heads"), "bank": folder / "banks" / "gsm8k-eagle3.json"}


def test_a_bank_of_other_heads_is_refused_even_where_none_is_needed(
    folder: Path, bank: TreeBank, tmp_path: Path
) -> None:
    other = bank.provenance.model_copy(update={"heads_kind": "hydra"})
    bank.model_copy(update={"provenance": other}).save(tmp_path / "bank.json")
    with pytest.raises(EntMTPError, match="bank: its heads_kind is hydra, yours is eagle3"):
        load_method(spec(folder, "eagle3", bank=tmp_path / "bank.json"), print, EngineSettings.for_one())


def test_kinds_that_calibration_does_not_know_are_listed_with_eagle3(folder: Path) -> None:
    with pytest.raises(EntMTPError, match="heads: 'eagle=x' is not KIND=FOLDER with KIND one of dflash, eagle3,"):
        calibrate_quietly("gsm8k", folder, ["eagle=x"], NEW_TOKENS)


@pytest.mark.parametrize("profile", ["quick", "standard"])
def test_a_benchmark_of_eagle3_heads_alone_has_the_arms_that_they_can_do(
    profile: str, folder: Path, tmp_path: Path
) -> None:
    plan = make_plan(
        arms=[],
        heads=[f"eagle3={folder / 'heads'}"],
        profile=profile,
        suites=["gsm8k"],
        model=str(folder / "model"),
        banks=folder / "banks",
        data=[f"gsm8k={folder / 'gsm8k.jsonl'}"],
        overrides={"prompts": 1, "max_new_tokens": 12, "repetitions": 1},
        results=open_store(str(tmp_path)),
        tracking_uri=None,
        device="cpu",
        threads=1,
    )
    assert set(plan.arms) >= {"autoregressive", "eagle3", "eagle3-best", "entmtp", "entmtp-dynamic"}
    assert not [arm for arm in plan.arms if methods.get_arm(arm).heads not in (None, "eagle3")]
    if profile == "quick":
        return
    assert set(plan.arms) == set(with_family(default_arms(), "eagle3"))
    requests = Worker(plan.config).run(plan.units[0], plan.arms, plan.settings).requests.to_pylist()
    assert [row["arm"] for row in requests if not row["identical"]] == []
    assert {row["arm"] for row in requests} == set(plan.arms)
    assert max(row["drafted"] for row in requests) < MAX_NODES
