"""Published heads from their checkpoints to text and a benchmark, by the commands that a user would type."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from entmtp import methods
from entmtp.cli import app
from entmtp.evaluation.results.rows import read_parts
from entmtp.evaluation.results.storage import open_store
from entmtp.loading import load_method
from entmtp.method_spec import MethodSpec
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.kernels.block_weight import dequantized
from entmtp.models.loading.load import encode_chat, load_model
from entmtp.settings import EngineSettings
from tests.helpers.hydra_plus_plus_heads import HydraPlusPlusShape, published_hydra_plus_plus
from tests.helpers.published_checkpoints import Model, hydra, medusa
from tests.helpers.saved_project import VOCAB, Saved, save_data, save_tiny_model
from tests.helpers.tiny_models import greedy

KINDS = ("medusa", "hydra")
PROMPT = "Tell me more about nothing."


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A model, imported heads of both families, data and a bank for each family."""
    saved = Saved(tmp_path_factory.mktemp("project"))
    backbone: Backbone = save_tiny_model(saved.model)
    seen = Model(backbone.model.get_output_embeddings().weight.detach(), dequantized(backbone.embeddings).detach())
    for published in (medusa(seen), hydra(seen)):
        folder = published.save(saved.folder / f"published-{published.kind}")
        said = run("import-heads", folder, f"--output={saved.heads(published.kind)}", f"--model={saved.model}")
        assert f"output layer each, hidden size 32, vocabulary {VOCAB}, for that model" in said
    save_data(saved.folder)
    heads = [f"--heads={kind}={saved.heads(kind)}" for kind in KINDS]
    run("calibrate", "--task=gsm8k", f"--output={saved.banks}", f"--model={saved.model}", *heads,
        f"--data={saved.data('gsm8k')}", "--prompts=4", "--max-new-tokens=48")  # fmt: skip
    return saved


def answer(saved: Saved, *options: str) -> str:
    """The answer's text, without the line of statistics."""
    return run("generate", PROMPT, f"--model={saved.model}", "--max-new-tokens=24", *options).rsplit("\n\n", 1)[0]


def test_every_method_writes_the_models_own_text(saved: Saved) -> None:
    methods = {"medusa": "medusa", "medusa-best": "medusa", "entmtp": "hydra", "entmtp-dynamic": "hydra"}
    texts = {
        answer(saved, f"--method={method}", f"--heads={saved.heads(kind)}", f"--bank={saved.banks}/gsm8k-{kind}.json")
        for method, kind in methods.items()
    }
    assert texts == {answer(saved, "--method=autoregressive")}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("name", methods.adaptive())
def test_heads_of_each_kind_run_every_policy(saved: Saved, name: str, kind: str) -> None:
    bank = saved.banks / f"gsm8k-{kind}.json"
    method = MethodSpec(name, model=str(saved.model), heads=str(saved.heads(kind)), bank=bank)
    engine, tokenizer = load_method(method, lambda text: None, EngineSettings.for_one())
    assert engine.heads is not None
    assert engine.heads.kind == kind
    prompt = encode_chat(tokenizer, PROMPT)
    assert engine.generate(prompt, 24).tokens == greedy(load_model(str(saved.model))[0], prompt, 24)


def test_heads_that_look_back_go_the_same_way(saved: Saved, tmp_path: Path) -> None:
    backbone = build_backbone(load_model(str(saved.model))[0])
    seen = Model(backbone.model.get_output_embeddings().weight.detach(), dequantized(backbone.embeddings).detach())
    published = published_hydra_plus_plus(seen, HydraPlusPlusShape.of(backbone.model)).save(tmp_path / "published")
    run("import-heads", published, f"--output={tmp_path / 'ours'}", f"--model={saved.model}")
    run("calibrate", "--task=gsm8k", f"--output={tmp_path}", f"--model={saved.model}",
        f"--heads=hydra={tmp_path / 'ours'}", f"--data={saved.data('gsm8k')}", "--prompts=4",
        "--max-new-tokens=48", "--dtype=bfloat16")  # fmt: skip
    theirs = f"--heads={tmp_path / 'ours'}", f"--bank={tmp_path}/gsm8k-hydra.json"
    texts = {answer(saved, f"--method={method}", *theirs) for method in ("hydra", "entmtp", "entmtp-dynamic")}
    assert texts == {answer(saved, "--method=autoregressive")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_benchmark_runs_their_arms(dtype: str, saved: Saved, tmp_path: Path) -> None:
    arms = ("autoregressive", "medusa", "hydra", "entmtp-dynamic")
    said = run("benchmark", *saved.options(["gsm8k"]), *(f"--arm={arm}" for arm in arms), f"--results={tmp_path}",
               "--prompts=1", "--repetitions=1", "--max-new-tokens=16", f"--dtype={dtype}")  # fmt: skip
    rows = read_parts(open_store(str(tmp_path / "parts")))[0].to_pylist()
    assert {row["arm"] for row in rows} == set(arms)
    if dtype == "float32":
        assert all(row["identical"] for row in rows)
    assert (f"All ran in {dtype}" in said) == (dtype != "float32")
