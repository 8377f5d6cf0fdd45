"""Mistakes on the command line: exit code 2 and one line that names what is wrong. No command gets to work here."""

import gc
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from entmtp import loading
from entmtp.cli import app
from entmtp.evaluation.results.rows import finished_keys, part_files, tables_of, write_part
from entmtp.evaluation.results.storage import open_store
from entmtp.models.build import build_backbone
from entmtp.suites import load_suite, split
from entmtp.tracking.client import default_tracking_uri
from tests.helpers.published_checkpoints import Model, medusa
from tests.helpers.saved_project import SUITES, VOCAB, Saved, save_heads, save_project
from tests.helpers.tiny_models import STATELESS_KINDS, random_heads, tiny_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def benchmark(saved: Saved, *suites: str) -> list[str]:
    """A benchmark that would run, to be given one wrong option more."""
    return ["benchmark", *saved.options(suites or SUITES), "--tracking-uri", default_tracking_uri(saved.folder)]


def refused(said: str, *arguments: object) -> None:
    """The command ends with exit code 2 and one line on standard error that holds ``said``."""
    result = run(*arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith(f"entmtp {arguments[0]}: ")
    assert said in lines[0]
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--suite", "humanevil"], "unknown suite 'humanevil'; known suites are humaneval, gsm8k, sharegpt, litbench"),
        (["--arm", "eagle"], "arm: 'eagle' is unknown; choose from autoregressive, medusa"),
        (
            ["--profile", "slow"],
            "profile: 'slow' is unknown; choose one of quick, standard, study, study-lossless, study-typical, full,",
        ),
        (["--max-new-tokens", "0"], "max_new_tokens: 0 is not accepted: input should be greater than or equal to 1"),
        (["--prompts", "0"], "prompts: 0 is not accepted"),
        (["--repetitions", "-1"], "repetitions: -1 is not accepted"),
        (["--model", "nowhere"], "heads: none are shipped for model 'nowhere'"),
        (
            ["--results", "ftp://host/x"],
            "results: scheme 'ftp' of 'ftp://host/x' is unknown; use a path, file://, s3://",
        ),
        (["--results", ""], "results: '' is empty"),
        (["--results", __file__], "is a file; give a folder"),
        (["--device", "tpu"], "device: 'tpu' is unknown; choose one of auto, cpu, cuda"),
        (["--gpus-per-worker", "0"], "gpus_per_worker: 0 is not accepted"),
        (["--gpus-per-worker", "1.5"], "gpus_per_worker: 1.5 is not accepted; give a whole number, or less than 1"),
        (["--gpus-per-worker", "1"], "gpus_per_worker: 1.0 is for the workers of a cluster; run jobs/benchmark.py"),
        (["--accelerator", "H100"], "accelerator: H100 is for the workers of a cluster"),
        (["--workers", "0"], "workers: 0 is not accepted; give at least 1"),
        (["--workers", "8"], "workers: 8 is for the workers of a cluster; run jobs/benchmark.py there"),
        (["--cpus-per-worker", "0"], "cpus_per_worker: 0 is not accepted; give at least 1"),
        (["--cpus-per-worker", "1"], "cpus_per_worker: 1 is for the workers of a cluster; run jobs/benchmark.py there"),
        (["--dtype", "int8"], "dtype 'int8': unknown; use float32, bfloat16 or float16"),
    ],
)
def test_a_benchmark_that_cannot_be(arguments: list[str], said: str) -> None:
    refused(said, "benchmark", *arguments)


def test_a_benchmark_of_a_model_without_banks(saved: Saved) -> None:
    heads = [f"--heads={kind}={saved.heads(kind)}" for kind in STATELESS_KINDS]
    refused("banks: none are shipped for model", "benchmark", "--model", saved.model, *heads)
    refused("gsm8k-hydra.json does not exist", *benchmark(saved), "--banks", saved.folder)


def test_a_benchmark_whose_results_were_measured_elsewhere(saved: Saved, tmp_path: Path) -> None:
    options = [*benchmark(saved, "gsm8k"), "--arm=hydra", "--prompts=2", "--results", str(tmp_path / "run")]
    shown = run(*options, "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "1 arms: hydra" in shown.stdout
    assert not (tmp_path / "run").exists()
    refused("tokens_per_second: 0 is not accepted", *options, "--dry-run", "--tokens-per-second=0")
    done = run(*options)
    assert done.exit_code == 0, done.output
    assert "workers were busy" in done.stdout
    parts = open_store(str(tmp_path / "run" / "parts"))
    first, second = sorted(finished_keys(parts))
    write_part(parts, first, *tables_of([], []), {"hardware": "another machine"})
    (tmp_path / "run" / "parts" / part_files(second)[0]).unlink()
    refused("were measured on 'another machine' and here is '", *options)


@pytest.mark.parametrize("heads", ["medusa", "medusa=", "eagle=folder", "eagle2=folder", "=folder"])
def test_heads_that_are_not_a_pair(heads: str, saved: Saved) -> None:
    refused(f"heads: '{heads}' is not NAME=PATH", *benchmark(saved), "--heads", heads)


def test_heads_of_one_kind_only(saved: Saved) -> None:
    one = ["--model", saved.model, "--banks", saved.banks, "--heads", f"hydra={saved.heads('hydra')}"]
    refused("arm: 'medusa' drafts with medusa heads; give --heads medusa=", "benchmark", *one, "--arm", "medusa")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ('{"question": "?"}\n', "column 'answer' is missing"),
        ('{"question": "?", "answer": "#### 1"}\n{"question": \n', "line 2: broken JSON"),
        ('{"question": "?", "answer": 1}\n', "column 'answer' is wrong"),
    ],
)
def test_data_that_does_not_fit(content: str, said: str, saved: Saved, tmp_path: Path) -> None:
    data = tmp_path / "mine.jsonl"
    data.write_text(content)
    refused(said, *benchmark(saved, "gsm8k"), "--data", f"gsm8k={data}")
    refused(said, "calibrate", "--task=gsm8k", f"--output={tmp_path}", f"--model={saved.model}", f"--data={data}",
            f"--heads=hydra={saved.heads('hydra')}")  # fmt: skip
    assert not (tmp_path / "results" / "parts").exists()


def test_data_of_no_suite_or_nowhere(saved: Saved) -> None:
    refused("data: 'nosuch=x' is not NAME=PATH with NAME one of humaneval", *benchmark(saved), "--data=nosuch=x")
    refused("nowhere.jsonl does not exist", *benchmark(saved), "--data=gsm8k=nowhere.jsonl")


def other_model(folder: Path) -> None:
    save_heads("hydra", build_backbone(tiny_model("llama", seed=9, vocab_size=VOCAB)), folder)


def other_width(folder: Path) -> None:
    backbone = build_backbone(tiny_model("llama", vocab_size=VOCAB, hidden_size=16))
    random_heads("hydra", backbone, vocab_size=VOCAB, model_fingerprint="").save_pretrained(folder)


def pickled(folder: Path) -> None:
    other_model(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def damaged(folder: Path) -> None:
    other_model(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_fingerprint": ""}))
    (folder / "model.safetensors").write_bytes(b"PK\x03\x04 this is a zip")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (other_model, "heads: they were trained for the model with fingerprint"),
        (other_width, "heads: hidden_size is 16 but the model's is 32"),
        (pickled, "has no model.safetensors (found config.json, pytorch_model.bin)"),
        (damaged, "model.safetensors can't be read"),
        (lambda folder: None, "is neither a local folder nor a reachable hub repository"),
    ],
    ids=["other model", "other width", "pickled", "damaged", "absent"],
)
def test_heads_that_do_not_fit(make: Callable[[Path], None], said: str, saved: Saved, tmp_path: Path) -> None:
    make(tmp_path / "mine")
    refused(said, *benchmark(saved), "--heads", f"hydra={tmp_path / 'mine'}")
    refused(said, "generate", "Hello", "--model", saved.model, "--heads", tmp_path / "mine",
            "--bank", saved.banks / "gsm8k-hydra.json")  # fmt: skip


def other_heads(bank: dict[str, Any]) -> None:
    bank["provenance"]["heads_fingerprint"] = "0" * 64


def too_deep(bank: dict[str, Any]) -> None:
    bank["overall"] = {"paths": [[0] * depth for depth in range(1, 6)], "gain": [1.0] * 6, "share": 1.0}


def not_closed(bank: dict[str, Any]) -> None:
    bank["overall"] = {"paths": [[0, 1]], "gain": [1.0, 1.1], "share": 1.0}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (other_heads, "bank: its heads_fingerprint is 000000000000, yours is"),
        (too_deep, "path (0, 0, 0, 0, 0) has depth 5 but there are only 4 draft heads"),
        (not_closed, "path (0, 1) comes before its parent (0,)"),
    ],
)
def test_banks_that_do_not_fit(
    spoil: Callable[[dict[str, Any]], None], said: str, saved: Saved, tmp_path: Path
) -> None:
    for path in saved.banks.glob("*.json"):
        bank = json.loads(path.read_text())
        if path.name == "gsm8k-hydra.json":
            spoil(bank)
        (tmp_path / path.name).write_text(json.dumps(bank))
    refused(said, *benchmark(saved), "--banks", tmp_path)
    refused(said, "generate", "Hello", "--model", saved.model, "--heads", saved.heads("hydra"),
            "--bank", tmp_path / "gsm8k-hydra.json")  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "bank-oracle"], "method: 'bank-oracle' is unknown; choose one of autoregressive"),
        (["--task", "chess"], "task: 'chess' is unknown"),
        (["--model", "nowhere"], "model 'nowhere': not found"),
    ],
)
def test_an_answer_that_cannot_be_asked_for(arguments: list[str], said: str) -> None:
    refused(said, "generate", "Hello", *arguments)


def test_a_model_without_heads(saved: Saved) -> None:
    refused(f"heads: none are shipped for model '{saved.model}'", "generate", "Hello", "--model", saved.model)


def test_prompts_that_cannot_be_answered(saved: Saved) -> None:
    plain = ["--model", saved.model, "--method", "autoregressive"]
    refused("max_new_tokens: 0 is not accepted", "generate", "Hello", *plain, "--max-new-tokens=0")
    refused("prompt: '' is empty", "generate", "", *plain)
    refused("600 tokens and 256 new ones exceed the context of 512", "generate", "x" * 600, *plain)
    longer = "exceed the context of 64; shorten the prompt, set a longer context or ask for fewer tokens"
    refused(longer, "generate", "x" * 60, *plain, "--context=64")
    refused("device 'tpu-ish': unknown", "generate", "Hello", *plain, "--device=tpu-ish")


def test_heads_of_the_wrong_kind_for_the_method(saved: Saved) -> None:
    bank = saved.banks / "gsm8k-hydra.json"
    options = ["--model", saved.model, "--heads", saved.heads("medusa"), "--bank", bank]
    refused("holds medusa heads but the method needs hydra heads", "generate", "Hello", "--method=hydra", *options)
    refused("bank: its heads_kind is hydra, yours is medusa", "generate", "Hello", *options)


def test_a_calibration_that_cannot_be(saved: Saved, tmp_path: Path) -> None:
    options = [f"--output={tmp_path}", f"--model={saved.model}", f"--heads=hydra={saved.heads('hydra')}"]
    refused("unknown suite 'chess'", "calibrate", "--task=chess", *options)
    said = "humaneval-hydra.json does not exist; run 'entmtp calibrate --task humaneval' first"
    refused(said, "calibrate", "--task=mixed", *options)
    refused("prompts: 1 is not accepted", "calibrate", "--task=gsm8k", "--prompts=1", *options)
    refused("heads: 'eagle=x' is not KIND=FOLDER", "calibrate", "--task=gsm8k", "--heads=eagle=x", *options)
    _, scored = split(load_suite("gsm8k", saved.data("gsm8k")).prompts)
    row = {"question": scored[0].text, "answer": scored[0].reference["answer"]}
    (tmp_path / "scored.jsonl").write_text(json.dumps(row))
    said = "has no calibration prompt (half are reserved for scoring)"
    refused(said, "calibrate", "--task=gsm8k", f"--data={tmp_path / 'scored.jsonl'}", *options)


@pytest.mark.parametrize(
    ("content", "arguments", "said"),
    [
        ('{"prompt": "Hi"}', ["--kind=eagle"], "kind: 'eagle' is not accepted"),
        ('{"prompt": "Hi"}', ["--epochs=0"], "epochs: 0 is not accepted"),
        ('{"prompt": "Hi"}', ["--kind=eagle3", "--inner-size=0"], "inner_size: 0 is not accepted"),
        ('{"prompt": "Hi"}\n{"text": "Hi"}', [], 'line 2 is not {"prompt": "..."}'),
        ('{"prompt": "Hi"}\n["prompt"]', [], 'line 2 is not {"prompt": "..."}'),
        ('{"prompt": "Hi"}\n["prompt"', [], "train: prompts: prompts.jsonl, line 2: broken JSON ("),
        ('{"prompt": "Hi \\ud83d"}', [], "line 1: prompt holds '\\ud83d', half of a character"),
        ('{"prompt": " "}', [], "line 1: prompt is empty or not text"),
        ("\n", [], "holds none"),
        ("", [], "prompts.jsonl is empty"),
    ],
)
def test_a_training_that_cannot_be(content: str, arguments: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(content)
    refused(said, "train", "--prompts=prompts.jsonl", "--output=out", *arguments)


def test_a_model_that_is_too_shallow_for_its_heads_writes_no_text(saved: Saved) -> None:
    Path("prompts.jsonl").write_text('{"prompt": "Hi"}')
    options = ["--prompts=prompts.jsonl", "--output=out", f"--model={saved.model}"]
    refused("kind: 'eagle3' heads read a low, a middle and a high layer, and a model of 2 layers is too shallow",
            "train", "--kind=eagle3", *options)  # fmt: skip
    assert not Path("out").exists()


def test_training_prompts_that_are_nowhere() -> None:
    refused(
        "prompts: nowhere.jsonl does not exist; give the path of a file of JSON lines",
        "train",
        "--prompts=nowhere.jsonl",
        "--output=out",
    )


def test_a_training_that_cannot_be_tracked_is_refused_before_any_text_is_written(saved: Saved) -> None:
    Path("prompts.jsonl").write_text('{"prompt": "Hi"}')
    options = ["--prompts=prompts.jsonl", "--output=out", f"--model={saved.model}"]
    refused("tracking URI 'nonsense://x': MLflow says", "train", *options, "--tracking-uri=nonsense://x")
    assert not Path("out").exists()


def test_an_answer_streams_and_ends_in_a_line_of_statistics(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENTMTP_CACHE", str(tmp_path))  # nothing is measured yet
    options = ["--model", saved.model, "--heads", saved.heads("hydra"), "--bank", saved.banks / "gsm8k-hydra.json"]
    fast = run("generate", "Hello", *options, "--max-new-tokens=24")
    plain = run("generate", "Hello", "--model", saved.model, "--method=autoregressive", "--max-new-tokens=24")
    assert (fast.exit_code, plain.exit_code) == (0, 0)
    assert "measuring the cost of a step with hydra heads" in fast.stderr
    assert "measuring" not in plain.stderr, "it has nothing to measure"
    text, statistics = fast.stdout.rsplit("\n\n", 1)
    assert text == plain.stdout.rsplit("\n\n", 1)[0]
    assert statistics.startswith("entmtp-dynamic: 24 tokens in ")
    assert statistics.count("\n") == 1
    assert "autoregressive: 24 tokens in" in plain.stdout
    assert "24 steps, tau 1.00, 0.0 nodes per step" in plain.stdout


def test_garbage_is_collected_while_an_answer_is_written_but_not_among_what_was_loaded(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    collects: list[bool] = []
    open_session, stream = loading.open_session, loading.Session.stream

    def opened(*arguments: Any) -> loading.Session:
        collects.append(gc.isenabled())
        return open_session(*arguments)

    def streamed(*arguments: Any) -> Iterator[str]:
        collects.append(gc.isenabled())
        return stream(*arguments)

    monkeypatch.setattr(loading, "open_session", opened)
    monkeypatch.setattr(loading.Session, "stream", streamed)
    gc.unfreeze()
    done = run("generate", "Hello", "--model", saved.model, "--method=autoregressive", "--max-new-tokens=2")
    assert (done.exit_code, collects) == (0, [False, True])
    assert gc.get_freeze_count()


def test_heads_that_cannot_be_imported(saved: Saved, tmp_path: Path) -> None:
    said = "'org/nowhere' is neither a local folder nor a reachable hub repository"
    refused(said, "import-heads", "org/nowhere", "--output=ours")
    refused("are of no known layout", "import-heads", saved.heads("hydra"), "--output=ours")
    published = medusa(Model(torch.ones(VOCAB, 32), torch.ones(VOCAB, 32))).save(tmp_path / "published")
    said = "convert published heads with 'entmtp import-heads'"
    options = ["--model", saved.model, "--bank", saved.banks / "gsm8k-hydra.json"]
    refused(said, "generate", "Hello", *options, "--heads", published)


def test_serving_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    for absent in ("ray", "fastapi", "psutil", "openai", "fastapi_offline"):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, absent=absent: None if name == absent else found(name)
        )
        refused(f"{absent} is not installed; pip install 'entmtp[serve]'", "serve", "--config=nowhere.yaml")
    assert "--port" in run("serve", "--help").stdout
