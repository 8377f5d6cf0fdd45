"""One file and one line: a stranger's policy, heads and suite are seen wherever methods and suites are."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from pydantic import BaseModel
from typer.testing import CliRunner

import entmtp.suites
from entmtp import cli, methods
from entmtp.calibration.replay import cost_of, replay_file, replayable
from entmtp.evaluation.report.report import write_report
from entmtp.evaluation.run.arms import Toolbox, default_arms, make_engine
from entmtp.evaluation.run.planning import _foreign_tasks
from entmtp.heads import registry as heads_registry
from entmtp.heads.checkpoint import load_heads
from entmtp.heads.hydra import HydraConfig, HydraHeads
from entmtp.heads.registry import find_trained_heads, register_heads
from entmtp.methods import Method
from entmtp.models.build import build_backbone
from entmtp.policies import registry
from entmtp.settings import EngineSettings
from entmtp.suites import Prompt, Suite, load_suite, suite_names
from entmtp.suites.protocols import Protocol
from entmtp.trees.batch import TreeBatch
from entmtp.trees.trace import save_traces
from tests.helpers import synthetic_rows
from tests.helpers.blank_figures import blank_figures
from tests.helpers.paths import ROOT
from tests.helpers.small_cases import drawn_trace, small_backbone, small_bank, small_heads, small_prompt
from tests.helpers.synthetic_rows import make_tables
from tests.helpers.tiny_models import TREES, greedy, tiny_model

LINE = Method("entmtp-sure", "sure", "#AA3377", "a chain where the model was sure", adaptive=True)


def file_of_the_policy() -> str:
    """The policy's file as docs/extending.md gives it, except that no random model is as sure as its threshold asks."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (file,) = (str(block) for block in blocks if "@register_policy" in block)
    assert "threshold=0.5" in file
    return file.replace("threshold=0.5", "threshold=5.0")


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The policy's file, and its line after that of the paper's own."""
    every = {policy.name: policy for policy in registry.registered_policies()}
    monkeypatch.setattr(registry, "_REGISTERED", every)
    exec(file_of_the_policy(), {"__name__": "entmtp.policies.sure"})
    at = methods.names().index(methods.ENTMTP) + 1
    monkeypatch.setattr(methods, "TABLE", [*methods.TABLE[:at], LINE, *methods.TABLE[at:]])
    yield
    monkeypatch.undo()
    importlib.reload(cli)


@pytest.mark.usefixtures("policy")
def test_a_policy_is_in_the_order_and_has_its_colour() -> None:
    arms = default_arms()
    assert arms[arms.index("entmtp") + 1] == LINE.name
    assert methods.colour(LINE.name) == LINE.colour
    assert LINE.name in methods.adaptive()
    assert methods.check_arms([LINE.name, "medusa"]) == ["medusa", LINE.name]


@pytest.mark.usefixtures("policy")
def test_a_policy_is_replayed_and_in_the_help(tmp_path: Path) -> None:
    bank = small_bank()
    bank.save(tmp_path / "bank.json")
    marks = {"heads": bank.provenance.heads_fingerprint, "model": bank.provenance.model_fingerprint}
    save_traces(tmp_path / "t.safetensors", [drawn_trace(60, (0.6, 0.2), 4, seed=0)], marks)
    assert "sure" in replayable()
    found = replay_file(tmp_path / "t.safetensors", tmp_path / "bank.json", ["sure"], cost_of("flat"))
    assert found["sure"].tau > 1
    importlib.reload(cli)
    for command, name in (("generate", LINE.name), ("replay", "sure")):
        told = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "200"}).output
        assert re.search(rf"\b{name}\b", told)


@pytest.mark.usefixtures("policy")
def test_a_policy_is_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic_rows, "ARMS", {**synthetic_rows.ARMS, LINE.name: synthetic_rows.ARMS["entmtp"]})
    tables = make_tables(arms=("autoregressive", "entmtp", LINE.name), suites=("gsm8k",), prompts=3)
    with blank_figures():
        page = write_report(tmp_path, *tables, {}).read_text(encoding="utf-8")
    assert f"<b>{LINE.name}</b>: {LINE.description}." in page


@pytest.mark.usefixtures("policy")
def test_a_policy_writes_the_models_own_text() -> None:
    backbone = small_backbone()
    tools = Toolbox(backbone, {"hydra": small_heads("hydra", backbone)}, {"hydra": small_bank()}, {})
    done = make_engine(LINE.name, tools, EngineSettings.for_one()).generate(small_prompt(5), 20)
    assert done.tokens == greedy(backbone.model, small_prompt(5), 20)
    assert done.drafted


class OtherConfig(HydraConfig):
    model_type = "entmtp_test_other"


def test_heads_are_loaded_by_the_type_that_they_are_saved_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads_registry, "_REGISTERED", dict(heads_registry.registered_heads()))

    @register_heads
    class OtherHeads(HydraHeads):
        kind = "other"
        config_class = OtherConfig

    backbone = build_backbone(tiny_model("llama"))
    config = OtherConfig(
        hidden_size=backbone.hidden_size,
        vocab_size=backbone.vocab_size,
        draft_vocab_size=32,
        num_heads=4,
        inner_size=8,
    )
    OtherHeads(config).save_pretrained(tmp_path)
    loaded = load_heads(tmp_path, backbone)
    assert isinstance(loaded, OtherHeads)
    assert find_trained_heads("other") is OtherHeads, "so 'entmtp train --kind other' makes them"
    with pytest.raises(ValueError, match="'entmtp_test_other' is registered already"):
        register_heads(OtherHeads)
    drafted = loaded.propose(torch.randn(1, backbone.hidden_size), torch.tensor([3]), TreeBatch.of([TREES["chain"]]))
    assert drafted.tokens.shape == (1, 1 + TREES["chain"].nodes)


class RiddleRow(BaseModel):
    riddle: str
    solution: str


class Riddles(Suite[RiddleRow]):
    name: str = "riddles"
    family: str = "riddles"
    protocol: Protocol = Protocol("{riddle}", 64, (), "contains", "sharegpt")
    row_type: ClassVar[type[BaseModel]] = RiddleRow

    def prompts(self, row: RiddleRow, number: int) -> list[Prompt]:
        text = self.protocol.template.format(riddle=row.riddle)
        return [Prompt(f"riddles/{number}", self.name, text, {"solution": row.solution})]

    def score(self, prompt: Prompt, text: str) -> float:
        return float(prompt.reference["solution"] in text)


def test_a_suite_is_read_and_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(entmtp.suites.SUITES, "riddles", Riddles())
    (tmp_path / "riddles.jsonl").write_text('{"riddle": "What has an eye?", "solution": "needle"}\n', encoding="utf-8")
    assert suite_names(["gsm8k", "riddles"]) == ["gsm8k", "riddles"]
    (prompt,) = load_suite("riddles", tmp_path / "riddles.jsonl").prompts
    assert prompt.text == "What has an eye?"
    assert [Riddles().score(prompt, text) for text in ("a needle", "a storm")] == [1.0, 0.0]
    assert _foreign_tasks(["riddles"], ["entmtp-transfer"]) == ["humaneval"]
