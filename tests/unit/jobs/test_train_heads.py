"""The training job: one text for all kinds, then the kinds at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
from typer import Typer
from typer.testing import CliRunner, Result

from entmtp.evaluation.run.placement import Node
from jobs import train_heads

Call = tuple[Callable[..., Any], Sequence[Sequence[Any]]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Resources that a cluster of one node is asked for."""
    asked: list[Call] = []

    def call_each(function: Callable[..., Any], calls: Sequence[Sequence[Any]], placement: object) -> list[str]:
        asked.append((function, calls))
        return ["done"] * len(calls)

    monkeypatch.setattr(ray, "init", lambda **options: None)
    monkeypatch.setattr(train_heads, "alive_nodes", lambda: [Node("a", "10.0.0.1", cpus=4, gpus=0, kind="")])
    monkeypatch.setattr(train_heads, "call_each", call_each)
    return asked


def run(folder: Path, *arguments: str) -> Result:
    program = Typer()
    program.command()(train_heads.main)
    prompts = folder / "prompts.jsonl"
    return CliRunner().invoke(program, [f"--prompts={prompts}", f"--output={folder / 'out'}", *arguments])


@pytest.mark.parametrize(
    ("arguments", "kinds"),
    [
        ([], ["eagle3", "hydra", "medusa"]),
        (["--kind=hydra", "--kind=eagle3", "--kind=hydra"], ["hydra", "eagle3"]),
    ],
)
def test_the_text_is_written_once_before_the_kinds_are_trained_at_once(
    arguments: list[str], kinds: list[str], calls: list[Call], tmp_path: Path
) -> None:
    done = run(tmp_path, *arguments)
    assert done.exit_code == 0, done.output
    (prepare, prepared), (train, trained) = calls
    given = tmp_path / "prompts.jsonl", tmp_path / "out", "bundled", "cpu"
    assert (prepare, prepared) == (train_heads.prepare, [(kinds, *given)])
    assert (train, trained) == (train_heads.train_one, [(kind, *given, None) for kind in kinds])


def test_an_unknown_kind_is_named_before_a_cluster_is_asked(calls: list[Call], tmp_path: Path) -> None:
    done = run(tmp_path, "--kind=hydra", "--kind=eagle")
    assert done.exit_code == 2
    assert done.stderr == "entmtp train: kind: 'eagle' is not accepted; choose one of eagle3, hydra, medusa\n"
    assert calls == []
