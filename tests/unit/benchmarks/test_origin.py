"""Where a record comes from: the commit, what differs from it, and what was committed after it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks import origin, performance
from benchmarks.lib.age import age, measured_code
from benchmarks.lib.record import Record, Table, deliver, make_record
from entmtp.errors import EntMTPError
from tests.helpers.benchmark_commands import main_of, source_files
from tests.helpers.git_repository import commit_all, run_git

Git = Callable[..., str]
FOLDER = Path(performance.__file__).parent
EVERY_BENCHMARK = [
    *(text for commands in performance.COMMANDS.values() for text in commands.values()),
    "endpoints --other vllm=http://127.0.0.1:1/v1",
    "speedups",
]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that benchmarks take for theirs, without git."""
    folder = tmp_path / "checkout"
    (folder / "entmtp").mkdir(parents=True)
    (folder / "docs/performance").mkdir(parents=True)
    monkeypatch.setattr(origin, "ROOT", folder)
    monkeypatch.setattr(origin, "commit", origin.commit.__wrapped__)
    return folder


@pytest.fixture
def git(checkout: Path) -> Git:
    """Runs git in the checkout, which has one commit of three files."""
    for name in ("entmtp/step.py", "README.md", "docs/performance/cpu-step.json"):
        (checkout / name).write_text("first\n")
    commit_all(checkout)
    return partial(run_git, checkout)


def record() -> Record:
    return make_record("step", "title", "a CPU", [Table(title="times", columns=["ms"], rows=[[1]])])


def test_a_clean_checkout_is_its_commit(checkout: Path, git: Git) -> None:
    assert origin.commit() == git("rev-parse", "HEAD")[:12]
    assert origin.changed_files() == []
    assert record().commit_description == f"commit {origin.commit()}"


@pytest.mark.parametrize("name", ["entmtp/step.py", "README.md"])
def test_a_changed_file_is_refused_by_name(checkout: Path, git: Git, name: str) -> None:
    (checkout / name).write_text("second\n")
    with pytest.raises(EntMTPError, match=f"record: {name} differs from commit [0-9a-f]{{12}}, .* --uncommitted"):
        origin.check_committed()
    assert record().commit_description == f"commit {origin.commit()} with uncommitted changes"


def test_a_staged_file_is_a_change(checkout: Path, git: Git) -> None:
    (checkout / "entmtp/step.py").write_text("second\n")
    git("add", ".")
    assert origin.changed_files() == ["entmtp/step.py"]


def test_a_new_file_counts_where_it_may_be_measured(checkout: Path, git: Git) -> None:
    (checkout / "notes.txt").write_text("mine")
    (checkout / "docs/performance/new.json").write_text("{}")
    assert origin.changed_files() == []
    (checkout / "entmtp/new.py").write_text("new = True\n")
    assert origin.changed_files() == ["entmtp/new.py"]


def test_what_benchmarks_write_is_no_change(checkout: Path, git: Git) -> None:
    (checkout / "docs/performance/cpu-step.json").write_text("second\n")
    assert origin.changed_files() == []


def test_a_commit_while_it_measures_is_a_change(checkout: Path, git: Git, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = origin.commit()
    monkeypatch.setattr(origin, "commit", lambda: begun)
    (checkout / "entmtp/step.py").write_text("second\n")
    git("commit", "--quiet", "--all", "--message", "second")
    assert record().commit == f"{begun}+"


def test_without_git_a_record_says_so(checkout: Path, git: Git) -> None:
    (checkout / ".git").rename(checkout.parent / ".git")  # of a repository that this copy was unpacked into
    assert origin.commit() == ""
    origin.check_committed()
    assert record().commit_description == "code without git, so of no known commit"
    assert age(record().base_commit, ["entmtp"]) == "Since then: unknown, as its commit is not in this history."
    with pytest.raises(EntMTPError, match=r"history: .* use a git clone"):
        origin.history_date()


def test_git_that_fails_is_not_taken_for_a_clean_checkout(
    checkout: Path, git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origin, "commit", lambda: "0123456789ab")
    with pytest.raises(EntMTPError, match="git does not tell what differs from commit 0123456789ab"):
        origin.changed_files()


def test_an_age_counts_the_commits_to_what_was_measured(checkout: Path, git: Git) -> None:
    begun = origin.commit()
    ages = ["no commit"]
    for name, text in (("README.md", "2"), ("entmtp/step.py", "3"), ("entmtp/step.py", "4")):
        (checkout / name).write_text(text)
        git("commit", "--quiet", "--all", "--message", text)
        ages.append(age(begun, ["benchmarks/step.py", "entmtp"]))
    said = "Since then: {} to benchmarks/step.py, entmtp."
    assert ages[1:] == [said.format(count) for count in ("no commit", "1 commit", "2 commits")]
    assert origin.history_date() == git("log", "-1", "--format=%cs")


def test_a_part_of_the_history_tells_no_ages(checkout: Path, git: Git, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = origin.commit()
    git("commit", "--quiet", "--allow-empty", "--message", "second")
    shallow = checkout.parent / "shallow"
    git("clone", "--quiet", "--depth", "1", f"file://{checkout}", str(shallow))
    monkeypatch.setattr(origin, "ROOT", shallow)
    assert "not in this history" in age(begun, ["entmtp"])
    with pytest.raises(EntMTPError, match="fetch --unshallow"):
        origin.history_date()


def test_the_code_that_a_benchmark_measures_exists() -> None:
    for text in EVERY_BENCHMARK:
        for path in measured_code(text.split()[0]):
            assert (FOLDER.parent / path).exists(), path
    assert "deployments" in measured_code("overload")


def test_every_benchmark_that_records_is_tried_here() -> None:
    recording = {name for name, path in source_files().items() if "deliver(" in path.read_text()}
    assert recording == {text.split()[0] for text in EVERY_BENCHMARK}


@pytest.mark.parametrize("text", EVERY_BENCHMARK)
def test_a_benchmark_refuses_changed_files_before_it_measures(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *options = text.split()
    command = _command(name)
    monkeypatch.setattr(origin, "changed_files", lambda: ["entmtp/step.py"])
    with pytest.raises(SystemExit) as ended:
        command.make_context(name, [*options, "--record", "x.json"])
    assert ended.value.code == 2
    assert "record: entmtp/step.py differs from commit" in capsys.readouterr().err
    command.make_context(name, list(options))  # which it empties
    context = command.make_context(name, [*options, "--record", "x.json", "--uncommitted"])
    assert (context.params["record"], context.params["uncommitted"]) == (Path("x.json"), True)
    monkeypatch.setattr(origin, "changed_files", list)
    assert not command.make_context(name, [*options, "--record", "x.json"]).params["uncommitted"]


@pytest.mark.parametrize("given", ["", "."])
def test_a_record_that_is_a_folder_is_refused_before_anything_is_measured(
    given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        _command("step").make_context("step", ["--record", given, "--uncommitted"])
    assert ended.value.code == 2
    assert "record: '.' is a folder; give a file" in capsys.readouterr().err


def test_files_changed_while_it_measured_are_refused_at_the_end(
    checkout: Path, git: Git, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "step.json"
    (checkout / "README.md").write_text("second\n")
    with pytest.raises(EntMTPError, match=r"README\.md differs from commit"):
        deliver(record(), target, uncommitted=False)
    assert not target.exists()
    assert "title" in capsys.readouterr().out
    deliver(record(), target, uncommitted=True)
    assert target.exists()


def _command(name: str) -> Any:
    app = typer.Typer()
    app.command()(main_of(name))
    return typer.main.get_command(app)
