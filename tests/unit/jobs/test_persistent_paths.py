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
from entmtp.evaluation.run.command import benchmark_command
from entmtp.persistent_paths import check_persistent_path
from entmtp.tracking import client
from entmtp.tracking.client import check_tracking
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


@pytest.mark.parametrize(
    ("uri", "stored"),
    [
        ("sqlite:///mlflow.db", "mlflow.db"),
        ("mlruns", "mlruns"),
        ("./mlruns", "mlruns"),
        ("file:mlruns", "mlruns"),
        ("file:./ml%20runs", "ml runs"),
    ],
)
def test_tracking_that_would_be_lost_is_refused(uri: str, stored: str, upload: Path) -> None:
    with pytest.raises(EntMTPError, match=f"tracking_uri: '{stored}' would lie in the temporary copy"):
        check_tracking(uri, "entmtp-load")
    with pytest.raises(EntMTPError, match="would lie in the temporary copy"):
        check_tracking((upload / stored).as_uri(), "entmtp-load")


@pytest.mark.parametrize(
    "uri", ["", "http://host:5000", "databricks", "databricks://mine", "uc", "postgresql://host/a"]
)
def test_tracking_by_a_server_lies_on_no_disk_here(uri: str) -> None:
    assert client._on_disk(uri) is None


@pytest.mark.parametrize("uri", ["s3://bucket/run", "gs://bucket", "file:///shared/run"])
@pytest.mark.parametrize(
    ("main", "arguments", "option"),
    [
        (load.main, LOAD, "results"),
        (train_heads.main, ["--prompts=p.jsonl"], "output"),
        (calibrate.main, [], "output"),
        (compare.main, ["a", "b"], "output"),
    ],
)
def test_a_job_that_writes_to_a_disk_refuses_a_uri(
    main: Callable[..., None],
    arguments: list[str],
    option: str,
    uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray, "init", never)
    program = Typer()
    program.command()(main)
    done = CliRunner().invoke(program, [*arguments, f"--{option}={uri}"])
    assert done.exit_code == 2, done.output + repr(done.exception)
    (line,) = done.stderr.splitlines()
    scheme = uri.partition(":")[0]
    assert f": {option}: a URI ({scheme}://…) is not accepted here, only a folder; give --{option} an absolute" in line
    assert list(tmp_path.iterdir()) == []


def test_paths_that_last_pass(upload: Path, tmp_path: Path) -> None:
    check_persistent_path("results", tmp_path / "results")
    check_persistent_path("results", Path("~/results"))
    check_persistent_path("results", tmp_path / "working_dir_files" / "runtime_resources")
    check_persistent_path("results", tmp_path / "s3:" / "results")
