"""The local runner: arguments that it passes to a job in another folder, and the job's end."""

import shlex
import sys
from pathlib import Path

import pytest

from entmtp.errors import EntMTPError
from jobs import local
from jobs.local import main, submit, with_absolute_paths


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "gsm8k.jsonl").write_text("")
    (tmp_path / "quick").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (["--profile", "quick"], ["--profile", "quick", "--results", "{here}/results"]),
        (["--results", "out"], ["--results", "{here}/out"]),
        (["--results=out"], ["--results={here}/out"]),
        (["--output", "banks", "--task", "gsm8k"], ["--output", "{here}/banks", "--task", "gsm8k"]),
        (["--output=b", "--data", "a=data/gsm8k.jsonl"], ["--output={here}/b", "--data", "a={here}/data/gsm8k.jsonl"]),
        (["--output=b", "--data=a=data/gsm8k.jsonl"], ["--output={here}/b", "--data=a={here}/data/gsm8k.jsonl"]),
        (["--output=b", "--data", "a=absent.jsonl"], ["--output={here}/b", "--data", "a=absent.jsonl"]),
        (["--output=b", "--model", "./data"], ["--output={here}/b", "--model", "{here}/data"]),
        (["--output=b", "--model", "org/name"], ["--output={here}/b", "--model", "org/name"]),
        (["--results", "/elsewhere"], ["--results", "/elsewhere"]),
        (["--results", "s3://bucket/run"], ["--results", "s3://bucket/run"]),
        (["--results=file:///elsewhere"], ["--results=file:///elsewhere"]),
    ],
)
def test_paths_become_absolute_and_nothing_else_changes(given: list[str], made: list[str], here: Path) -> None:
    assert with_absolute_paths(given) == [argument.format(here=here) for argument in made]


def test_without_a_job_it_says_how_to_call_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["jobs/absent.py"]) == 2
    assert "usage: python jobs/local.py JOB.py" in capsys.readouterr().err


RAY = """
import sys
from pathlib import Path
verb, name = sys.argv[2], sys.argv[-1]
with Path("called").open("a") as called:
    print(verb, file=called)
if verb == "status":
    states = Path("states").read_text().splitlines()
    Path("states").write_text("\\n".join(states[1:]))
    if states[0] == "unreachable":
        sys.exit(1)
    running = f"Status for job '{name}': RUNNING"
    print(running if states[0] == "running" else f"Job '{name}' {states[0]}")
"""


@pytest.mark.parametrize(
    ("states", "code", "called"),
    [
        (["succeeded"], 0, ["submit", "status"]),
        (["failed"], 1, ["submit", "status"]),
        (["running", "running", "succeeded"], 0, ["submit", "status", "logs", "status", "logs", "status"]),
        (["running", "was stopped"], 1, ["submit", "status", "logs", "status"]),
    ],
)
def test_a_job_is_followed_to_its_end_also_where_its_log_ends_early(
    states: list[str], code: int, called: list[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "ray.py").write_text(RAY)
    (here / "states").write_text("\n".join(states))
    monkeypatch.setattr(local, "ray_command", lambda: [sys.executable, "ray.py"])
    assert submit(shlex.split("python jobs/benchmark.py"), {}) == code
    assert (here / "called").read_text().split() == called


def test_a_cluster_that_does_not_answer_is_an_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "ray.py").write_text(RAY)
    (here / "states").write_text("unreachable")
    monkeypatch.setattr(local, "ray_command", lambda: [sys.executable, "ray.py"])
    with pytest.raises(EntMTPError, match="does not answer"):
        submit(["python", "jobs/benchmark.py"], {})
