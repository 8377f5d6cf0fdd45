"""Names that MLflow would refuse after the work are refused before it, by MLflow's own rules."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer import Typer
from typer.testing import CliRunner

from entmtp import methods
from entmtp.errors import EntMTPError
from entmtp.evaluation.report.run_metrics import score_name
from entmtp.heads.checkpoint import KINDS
from entmtp.loadtest.load_summary import LoadSummary
from entmtp.suites import SUITES
from entmtp.tracking.names import check_names, key_part
from jobs.load import main
from tests.helpers.paths import ROOT

ALL = dict.fromkeys([*methods.offered(), *methods.names()])


@pytest.mark.parametrize("name", ["v1@prod", "a+b", "a%20b", "x//y", "x/../y", "x/.", "ä😀", "n" * 300])
def test_a_name_that_mlflow_refuses_is_named(name: str) -> None:
    with pytest.raises(EntMTPError, match=r"^endpoint: MLflow can't store the name '") as refused:
        check_names("endpoint", {"good": "endpoint.good", name: f"endpoint.{name}"})
    message = str(refused.value)
    assert name[:60] in message
    assert len(message) < 400
    assert message.endswith("give another name")


SEEN = """
import os, sys

class Watch:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "mlflow":
            print(os.environ.get("MLFLOW_DISABLE_TELEMETRY"), os.environ.get("MLFLOW_LOGGING_LEVEL"))
            raise SystemExit

sys.meta_path.insert(0, Watch)
"""
"""Ends a program where it begins to import MLflow, and tells what MLflow would find."""


@pytest.mark.parametrize(
    "call",
    [
        "from entmtp.tracking.names import check_names; check_names('arm', {'a': 'a'})",
        "from entmtp.tracking.client import check_tracking; check_tracking('http://127.0.0.1:9', 'a')",
    ],
    ids=["names", "tracking"],
)
@pytest.mark.parametrize(("given", "seen"), [({}, "true WARNING"), ({"MLFLOW_LOGGING_LEVEL": "INFO"}, "true INFO")])
def test_mlflow_is_quiet_before_it_is_imported(call: str, given: dict[str, str], seen: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    done = subprocess.run(
        [sys.executable, "-c", SEEN + call],
        cwd=ROOT,
        env=environment | given,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{seen}\n"


def test_names_that_mlflow_takes_pass() -> None:
    check_names("endpoint", {name: f"endpoint.{name}" for name in ("v1", "v1-prod", "a b", "x/y", "ä.1_2")})


@pytest.mark.parametrize("suite", [*SUITES, "gsm8k-8-shot", "sharegpt-3-turns"])
def test_arms_suites_and_scores_have_names_that_mlflow_takes(suite: str) -> None:
    arms = {arm: f"{arm}/speedup_against_{other}_low" for arm in ALL for other in ALL}
    check_names("arm", arms)
    check_names("suite", {suite: f"prompts.{suite}", f"its score {suite}": score_name(suite)})
    check_names("heads", {kind: f"{suite}-{kind}-bank" for kind in KINDS})


def test_a_load_with_such_a_name_ends_before_anything_is_sent_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program = Typer()
    program.command()(main)
    options = ["--endpoint=v1@prod=http://127.0.0.1:9/v1", "--model=m", "--users=1", "--results=run"]
    done = CliRunner().invoke(program, options)
    assert done.exit_code == 2
    assert done.stderr.startswith(
        "entmtp load: endpoint: MLflow can't store the name 'v1@prod' (Names may only contain"
    )
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@given(st.text())
def test_kinds_of_errors_that_a_service_makes_up_are_stored_too(kind: str) -> None:
    check_names("error", {kind: f"errors.{key_part(kind)}"})


def test_kinds_that_come_to_one_name_are_counted_together() -> None:
    errors = {"stream: a@b": 2, "stream: ab": 3, "HTTP 429": 1}
    metrics = LoadSummary("e", 6, 1.0, 0.0, 0.0, 0.0, errors, {}, None, 0).metrics()
    assert {name: value for name, value in metrics.items() if name.startswith("errors.")} == {
        "errors.stream ab": 5.0,
        "errors.HTTP 429": 1.0,
    }
