"""Arguments that the local runner passes to a job in another folder."""

from pathlib import Path

import pytest

from jobs.local import main, with_absolute_paths


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
