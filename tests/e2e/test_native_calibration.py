"""A model's own multi-token-prediction layers: calibration to a bank, a session and a benchmark, by saved files."""

from pathlib import Path
from typing import Any

import pytest
import torch

from entmtp import methods
from entmtp.calibration.build import expansions_of, traces_of
from entmtp.errors import EntMTPError
from entmtp.evaluation.results.storage import open_store
from entmtp.evaluation.run.arms import default_arms, with_family
from entmtp.evaluation.run.planning import make_plan
from entmtp.evaluation.run.worker import Worker
from entmtp.heads.checkpoint import load_heads
from entmtp.loading import load_method
from entmtp.method_spec import MethodSpec
from entmtp.models.build import build_backbone
from entmtp.models.loading.load import encode_chat, load_model
from entmtp.policies.static import StaticPolicy
from entmtp.settings import EngineSettings
from entmtp.suites import load_suite, split
from entmtp.suites.splits import draw
from entmtp.trees.bank import load_bank
from entmtp.trees.trace_replay import static_tau
from tests.helpers.native_models import mtp_model, save_native, sure_heads
from tests.helpers.saved_project import VOCAB, calibrate_quietly, save_data, save_tokenizer
from tests.helpers.small_cases import single_engine
from tests.helpers.tiny_models import greedy

NEW_TOKENS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native")
    dense = {"mlp_layer_types": ["dense"] * 2, "mtp_mlp_layer_types": ["dense"]}
    model = mtp_model("mellum", vocab_size=VOCAB, max_position_embeddings=512, **dense)
    _, heads = sure_heads(model)
    # Sure of some tokens only, so that trees and policies have something to choose.
    weight = heads.mtp.layers[0].eh_proj.weight.data
    weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) / weight.shape[1] ** 0.5
    save_native(model, heads, folder / "model")
    save_tokenizer(folder / "model")
    save_data(folder)
    calibrate_quietly("gsm8k", folder, ["native=native"], NEW_TOKENS)
    return folder


def test_traces_of_written_text_are_those_of_a_real_run(folder: Path) -> None:
    model, tokenizer = load_model(str(folder / "model"))
    backbone = build_backbone(model)
    heads = load_heads("native", backbone)
    bank = load_bank(folder / "banks" / "gsm8k-native.json")
    assert bank.provenance.heads_kind == "native"
    suite = load_suite("gsm8k", folder / "gsm8k.jsonl")
    prompts = [encode_chat(tokenizer, prompt.text) for prompt in draw(split(suite.prompts)[0], 4, seed=0)]
    text = folder / "banks" / "text" / "gsm8k"
    traces = traces_of(text, backbone, heads)
    for nodes in (1, 6, 12):
        tree = bank.overall.tree(nodes)
        done = [
            single_engine(backbone, heads, StaticPolicy(tree, 8)).generate(prompt, NEW_TOKENS) for prompt in prompts
        ]
        tau = sum(len(one.tokens) for one in done) / sum(len(one.steps) for one in done)
        assert static_tau(traces, tree) == pytest.approx(tau)
        assert tau > 1.1
    expansion = expansions_of(text, backbone, heads)[0](3)
    _, log_probs = expansion.next_level([0], 4)
    torch.testing.assert_close(log_probs[0], traces[0].confidence[3, 0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", ["native", "native-best", "entmtp", "entmtp-goodput", "entmtp-dynamic"])
def test_every_method_writes_the_models_own_text(folder: Path, method: str) -> None:
    bank = None if method == "native" else folder / "banks" / "gsm8k-native.json"
    heads = None if method in methods.of_family("native") else "native"
    engine, tokenizer = load_method(
        MethodSpec(method, model=str(folder / "model"), heads=heads, bank=bank), print, EngineSettings.for_one()
    )
    assert engine.heads is not None
    assert engine.heads.kind == "native"
    prompt = encode_chat(tokenizer, "What is 3 + 3?")
    model, _ = load_model(str(folder / "model"))
    assert engine.generate(prompt, NEW_TOKENS).tokens == greedy(model, prompt, NEW_TOKENS)


def test_what_does_not_fit_is_told(folder: Path) -> None:
    model, bank = str(folder / "model"), folder / "banks" / "gsm8k-native.json"
    for method, message in (
        (MethodSpec("entmtp", model=model, heads="native"), "bank: none is shipped for native heads"),
        (
            MethodSpec("hydra", model=model, heads="native", bank=bank),
            "native holds native heads but the method needs hydra",
        ),
        (MethodSpec("entmtp", model=model, bank=bank), "heads: none are shipped for model .* --heads native if it has"),
    ):
        with pytest.raises(EntMTPError, match=message):
            load_method(method, print, EngineSettings.for_one())
    for heads in ("native=folder", "native"):
        with pytest.raises(EntMTPError, match=f"heads: '{heads}=?' is not KIND=FOLDER .* and not native=native"):
            calibrate_quietly("gsm8k", folder, [heads], NEW_TOKENS)


def test_a_benchmark_of_native_heads_alone_has_the_arms_that_they_can_do(folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "profile": "standard",
        "suites": ["gsm8k"],
        "model": str(folder / "model"),
        "banks": folder / "banks",
        "data": [f"gsm8k={folder / 'gsm8k.jsonl'}"],
        "overrides": {"prompts": 1, "max_new_tokens": 12, "repetitions": 1},
        "results": open_store(str(tmp_path)),
        "tracking_uri": None,
        "device": "cpu",
        "threads": 1,
    }
    plan = make_plan(arms=[], heads=["native=native"], **options)
    assert set(plan.arms) == set(with_family(default_arms(), "native"))
    requests = Worker(plan.config).run(plan.units[0], plan.arms, plan.settings).requests.to_pylist()
    assert [row["arm"] for row in requests if not row["identical"]] == []
    assert {row["arm"] for row in requests} == set(plan.arms)
    with pytest.raises(EntMTPError, match="arm: 'hydra' drafts with hydra heads; give --heads hydra="):
        make_plan(arms=["hydra"], heads=["native=native"], **options)
    with pytest.raises(EntMTPError, match="heads: native ones are the model's own, not 'x'; give native=native"):
        make_plan(arms=[], heads=["native=x"], **options)
