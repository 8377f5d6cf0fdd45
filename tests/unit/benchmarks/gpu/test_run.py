"""A run of parts: its order, its time, its errors. Parts here are a few lines of Python."""

from __future__ import annotations

import re
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import bundled, ceilings, parts, processes, worker
from benchmarks.gpu.parts import PARTS, Part
from entmtp.models.loading.bundled import FILE_NAME
from tests.helpers.paths import ROOT


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "ENDING_SECONDS", 0.0)
    monkeypatch.setattr(processes, "GRACE_SECONDS", 1.0)


def part(name: str, code: str, least: float = 0.0, most: float = 3000.0, package: str | None = None) -> Part:
    return Part(name, "a test", least, most, package, ("-c", code))


def run(*its: Part, seconds: float = 6000.0) -> tuple[dict[str, str], list[str]]:
    lines: list[str] = []
    endings = gpu.run_parts(list(its), [], time.monotonic() + seconds, lines.append)
    return {name: str(ending) for name, ending in endings.items()}, lines


def invoke(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(gpu.main)
    return CliRunner().invoke(app, list(arguments))


def test_a_part_that_dies_or_hangs_leaves_the_others_alone() -> None:
    endings, lines = run(
        part("crash", "import os; os.abort()"),
        part("hang", "import time; time.sleep(600)", most=0.5),
        part("good", "print('42 TB/s')"),
    )
    assert "SIGABRT" in endings["crash"]
    assert "stopped after" in endings["hang"]
    assert "done in" in endings["good"]
    assert "42 TB/s" in lines
    summary = lines[lines.index("Summary") + 1 :]
    assert [line.split()[0] for line in summary] == ["crash", "hang", "good"]


def test_what_no_longer_fits_the_time_is_skipped_with_a_line() -> None:
    endings, _ = run(part("long", "", least=9000.0), part("short", "print('ran')"))
    assert re.fullmatch(r"skipped: (5\d{3}|6000) s left, and it takes 9000 s", endings["long"])
    assert "done in" in endings["short"]


def test_a_part_gets_no_more_than_what_is_left() -> None:
    endings, lines = run(part("hang", "import time; time.sleep(600)", most=600.0), seconds=2.0)
    assert "stopped after" in endings["hang"]
    assert "(at most 2 s)" in lines[0]


def test_a_part_without_its_package_says_so() -> None:
    endings, _ = run(part("tests", "", package="no_such_package"))
    assert endings["tests"] == "skipped: the package no_such_package is not installed"


def test_a_worker_stops_by_itself_before_its_limit() -> None:
    command = PARTS[0].command(["--shape", "tiny"], 45.0)
    assert command[1:5] == ["-m", "benchmarks.gpu.worker", "ceilings", "--shape"]
    assert float(command[-1]) == 45.0 - parts.CLOSING_SECONDS


def test_without_the_bundled_model_a_part_says_where_to_put_it_and_no_test_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENTMTP_CACHE", str(tmp_path))
    monkeypatch.setattr(bundled, "PACKAGE", "no_such_package")
    assert str(tmp_path / "models" / FILE_NAME) in (bundled.bundled_unavailable_reason() or "")
    assert PARTS[-1].command([], 60.0)[-2:] == ["-k", "not bundled"]
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / FILE_NAME).touch()
    assert bundled.bundled_unavailable_reason() is None
    assert "-k" not in PARTS[-1].command([], 60.0)


def test_an_error_of_a_worker_ends_in_one_line_that_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(assignment: object) -> None:
        raise ImportError("numpy 3 is required\nTry pip")

    monkeypatch.setattr(ceilings, "measure", fail)
    with pytest.raises(SystemExit):
        worker.main("ceilings", "tiny", Path(), 60.0, dry=True)
    assert capsys.readouterr().err.endswith("\nentmtp gpu ceilings: ImportError: numpy 3 is required Try pip\n")


def test_parts_without_limits_of_their_own_would_not_take_much_longer_than_all() -> None:
    assert sum(each.least_seconds for each in PARTS) < 570
    assert all(each.least_seconds < each.most_seconds < 570 for each in PARTS)


def test_every_part_has_a_module_or_arguments_of_python() -> None:
    for each in PARTS:
        if each.arguments:
            assert (ROOT / each.arguments[2]).exists()
        else:
            assert find_spec(f"benchmarks.gpu.{each.name}") is not None


def test_a_machine_without_a_gpu_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = invoke()
    assert result.exit_code == 2
    assert "sees no NVIDIA GPU" in result.stderr
    assert "--dry" in result.stderr


def test_an_unknown_part_is_named() -> None:
    result = invoke("--dry", "--part", "stairs")
    assert result.exit_code == 2
    assert "part: 'stairs' is unknown; choose from ceilings, accuracy," in result.stderr


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "REQUIRED", ("torch", "no_such_package"))
    result = invoke("--dry")
    assert result.exit_code == 2
    assert f"packages: no_such_package can't be imported by {sys.executable}" in result.stderr


def test_all_that_is_printed_is_in_the_log_and_a_failure_in_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "PARTS", (part("good", "print('42 TB/s')"), part("bad", "raise ValueError('broken')")))
    result = invoke("--dry", "--output", str(tmp_path))
    assert result.exit_code == 2
    assert "part: bad failed" in result.stderr
    assert (tmp_path / gpu.LOG).read_text() == result.stdout
    assert "42 TB/s" in result.stdout
    assert all(re.match(r"\[ *\d+ s\] ", line) for line in result.stdout.splitlines())


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = invoke("--dry", "--output", str(tmp_path / "file" / "folder"))
    assert result.exit_code == 2
    assert "output: '" in result.stderr
