"""DSpark heads, fifteen levels deep: calibration to a bank, every method, and a benchmark, by saved files."""

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
from entmtp.loading import load_method
from entmtp.method_spec import MethodSpec
from entmtp.models.build import build_backbone
from entmtp.models.loading.load import encode_chat, load_model
from entmtp.persistent_paths import cache_folder
from entmtp.policies.step_cost import StepCost
from entmtp.settings import EngineSettings, SamplingParams
from entmtp.suites import load_suite, split
from entmtp.suites.splits import draw
from entmtp.training.kinds import find_trainer
from entmtp.trees.bank import MAX_NODES, TreeBank, load_bank
from tests.helpers.dflash_heads import dflash_heads, sure_dspark
from tests.helpers.replayed_runs import check_replay_is_real
from tests.helpers.saved_project import VOCAB, calibrate_quietly, save_data, save_tokenizer
from tests.helpers.tiny_models import greedy, tiny_model

NEW_TOKENS, DEPTH = 32, 15
OFFERED = ("dflash", "dflash-best", "entmtp", "entmtp-goodput", "entmtp-dynamic")
COST = StepCost(
    nodes=[0, 63],
    verify_ms=[20.0, 30.0],
    narrow_draft_ms=[2.0 + 0.1 * depth for depth in range(1, DEPTH + 1)],
    wide_draft_ms=[2.0 + 0.1 * depth for depth in range(1, DEPTH + 1)],
    wide_nodes=63,
    hardware="test",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, heads that are sure of some tokens only, so that trees differ, and their bank; and DFlash heads."""
    folder = tmp_path_factory.mktemp("dflash")
    model = tiny_model("llama", vocab_size=VOCAB, max_position_embeddings=512, tie_word_embeddings=True)
    _, heads = sure_dspark(
        model, noise=0.4, block_size=DEPTH + 1, num_heads=DEPTH, has_confidence=True, confidence_reads_token=True
    )
    model.save_pretrained(folder / "model")
    save_tokenizer(folder / "model")
    save_data(folder)
    saved = build_backbone(load_model(str(folder / "model"))[0])
    heads.config.model_fingerprint = saved.fingerprint
    heads.save_pretrained(folder / "heads")
    dflash_heads(saved).save_pretrained(folder / "without a bias")
    calibrate_quietly("gsm8k", folder, [f"dflash={folder / 'heads'}"], NEW_TOKENS)
    return folder


@pytest.fixture(scope="module")
def bank(folder: Path) -> TreeBank:
    return load_bank(folder / "banks" / "gsm8k-dflash.json")


@pytest.fixture(scope="module")
def tools(folder: Path, bank: TreeBank) -> Toolbox:
    backbone = build_backbone(load_model(str(folder / "model"))[0])
    heads = load_heads(folder / "heads", backbone)
    return Toolbox(backbone, {"dflash": heads}, {"dflash": bank}, {"dflash": COST})


def test_everything_in_a_bank_is_as_deep_as_the_heads(bank: TreeBank, tools: Toolbox) -> None:
    assert bank.provenance.heads_kind == "dflash"
    assert len(bank.by_depth) == len(bank.chances.slope) == DEPTH
    assert max(map(len, bank.overall.paths)) > 4
    assert bank.tuning is not None
    assert bank.tuning.heads == DEPTH
    cost = step_cost(tools.backbone, tools.heads["dflash"], cache_folder(), print)
    assert {len(each.narrow_draft_ms) for each in cost.costs} == {DEPTH}
    assert bank.chances.held_out is not None
    assert bank.chances.held_out.estimated_odds is not None, "the traces have the heads' own estimates"


@pytest.mark.parametrize("arm", OFFERED)
def test_a_replay_takes_the_steps_of_a_real_run(arm: str, folder: Path, tools: Toolbox) -> None:
    _, tokenizer = load_model(str(folder / "model"))
    suite = load_suite("gsm8k", folder / "gsm8k.jsonl")
    prompts = [encode_chat(tokenizer, prompt.text) for prompt in draw(split(suite.prompts)[0], 4, seed=0)]
    text = folder / "banks" / "text" / "gsm8k"
    check_replay_is_real(arm, "dflash", tools, text, prompts, NEW_TOKENS)


def test_a_trace_file_is_replayed_with_the_authors_chain_too(folder: Path) -> None:
    trace, bank = folder / "banks" / "gsm8k-dflash.trace.safetensors", folder / "banks" / "gsm8k-dflash.json"
    assert "chain" in replayable()
    found = replay_file(trace, bank, replayable(), cost_of(FLAT))
    assert found["hindsight"].tau >= found["best-static"].tau > 1.5
    assert found["chain"].tau > 1.5


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("name", OFFERED)
def test_every_method_writes_the_models_own_text(name: str, slots: int, folder: Path) -> None:
    bank = None if name == "dflash" else str(folder / "banks" / "gsm8k-dflash.json")
    settings = EngineSettings(slots=slots, context=256)
    llm = LLM(str(folder / "model"), policy=name, heads=str(folder / "heads"), bank=bank, settings=settings)
    prompts = [encode_chat(llm.tokenizer, text) for text in ("What is 3 + 3?", "Tell me more.", "And why?")]
    done = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS))
    model, _ = load_model(str(folder / "model"))
    assert [one.tokens for one in done] == [greedy(model, prompt, NEW_TOKENS) for prompt in prompts]
    assert max(one.tau for one in done) > 1.5 or name != "dflash", "the others draft by what steps cost here"


@pytest.mark.parametrize("slots", [1, 3])
def test_heads_without_a_bias_write_the_models_own_text(slots: int, folder: Path) -> None:
    settings = EngineSettings(slots=slots, context=256)
    llm = LLM(str(folder / "model"), policy="dflash", heads=str(folder / "without a bias"), settings=settings)
    prompts = [encode_chat(llm.tokenizer, text) for text in ("What is 3 + 3?", "Tell me more.", "And why?")]
    done = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS))
    model, _ = load_model(str(folder / "model"))
    assert [one.tokens for one in done] == [greedy(model, prompt, NEW_TOKENS) for prompt in prompts]


def spec(folder: Path, name: str, **changes: Any) -> MethodSpec:
    given: dict[str, Any] = {
        "model": str(folder / "model"),
        "heads": str(folder / "heads"),
        "bank": folder / "banks" / "gsm8k-dflash.json",
    }
    return MethodSpec(name, **(given | changes))


def test_the_authors_chain_needs_neither_bank_nor_costs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("entmtp.loading.machine_cost", lambda *args: pytest.fail("measured"))
    engine, _ = load_method(spec(folder, "dflash", bank=None), pytest.fail, EngineSettings.for_one())
    done = engine.generate([1, 2, 3], 8)
    assert done.steps[0].topology.paths == tuple((0,) * depth for depth in range(1, DEPTH + 1))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("dflash", {"heads": None}, "heads: none are shipped for model"),
        ("dflash", {"heads": None, "model": "bundled"}, "heads: no dflash ones are shipped and method 'dflash' needs"),
        ("hydra", {}, "heads holds dflash heads but the method needs hydra heads"),
        ("dflash-best", {"bank": None}, "bank: none is shipped for dflash heads of model .* --heads dflash=FOLDER"),
    ],
)
def test_what_does_not_fit_is_told(name: str, changes: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(EntMTPError, match=message) as told:
        load_method(spec(folder, name, **changes), print, EngineSettings.for_one())
    assert "\n" not in str(told.value)


def test_they_are_not_trained_here() -> None:
    with pytest.raises(EntMTPError, match="kind: 'dflash' heads can only be imported, with 'entmtp import-heads'; to"):
        find_trainer("dflash")


def test_a_benchmark_of_these_heads_alone_has_the_arms_that_they_can_do(folder: Path, tmp_path: Path) -> None:
    plan = make_plan(
        arms=[],
        heads=[f"dflash={folder / 'heads'}"],
        profile="standard",
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
    assert set(plan.arms) >= {"autoregressive", "dflash", "dflash-best", "entmtp", "entmtp-dynamic"}
    assert not [arm for arm in plan.arms if methods.get_arm(arm).heads not in (None, "dflash")]
    assert set(plan.arms) == set(with_family(default_arms(), "dflash"))
    requests = Worker(plan.config).run(plan.units[0], plan.arms, plan.settings).requests.to_pylist()
    assert [row["arm"] for row in requests if not row["identical"]] == []
    assert {row["arm"] for row in requests} == set(plan.arms)
    assert max(row["drafted"] for row in requests) < MAX_NODES
