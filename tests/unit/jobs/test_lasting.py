"""A submitted job writes nothing into the temporary copy of the checkout that it runs from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import ray
from typer import Typer
from typer.testing import CliRunner

from entmtp.errors import EntMTPError
from entmtp.evaluation.command import benchmark_command
from entmtp.evaluation.storage import check_lasting
from entmtp.evaluation.tracking import check_tracking
from jobs import calibrate, compare, load, train_heads

LOAD = ["--endpoint=a=http://127.0.0.1:9/v1", "--model=m", "--users=1"]


def never(*args: object, **kwargs: object) -> NoReturn:
    raise AssertionError("no cluster is to be asked for")


@pytest.fixture
def upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a job finds itself in."""
    folder = tmp_path / "session_1" / "runtime_resources" / "working_dir_files" / "_ray_pkg_0a1b"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(ray, "init", never)
    return folder


@pytest.mark.parametrize(
    ("main", "arguments", "option"),
    [
        (benchmark_command(never), [], "results"),
        (benchmark_command(never), ["--results=out"], "results"),
        (load.main, LOAD, "results"),
        (load.main, [*LOAD, "--results=out"], "results"),
        (train_heads.main, ["--prompts=p.jsonl", "--output=out"], "output"),
        (calibrate.main, ["--output=out"], "output"),
        (compare.main, ["a", "b", "--output=out"], "output"),
    ],
)
def test_results_that_would_be_lost_are_refused_before_any_work(
    main: Callable[..., None], arguments: list[str], option: str, upload: Path
) -> None:
    program = Typer()
    program.command()(main)
    done = CliRunner().invoke(program, arguments)
    assert done.exit_code == 2, done.output + repr(done.exception)
    (line,) = done.stderr.splitlines()
    assert f": {option}: '" in line
    assert "would lie in the temporary copy of the checkout that this job runs from, and be lost with it" in line
    assert f"give --{option} an absolute path" in line
    assert list(upload.iterdir()) == []


def test_a_tracking_database_that_would_be_lost_is_refused(upload: Path) -> None:
    with pytest.raises(EntMTPError, match=r"tracking_uri: 'mlflow\.db' would lie in the temporary copy"):
        check_tracking("sqlite:///mlflow.db", "entmtp-load")


def test_paths_that_last_pass(upload: Path, tmp_path: Path) -> None:
    check_lasting("results", tmp_path / "results")
    check_lasting("results", Path("~/results"))
    check_lasting("results", tmp_path / "working_dir_files" / "runtime_resources")
