"""The speedups of a benchmark as a record, from a report of made-up rows."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import origin
from benchmarks.lib.record import read_record
from benchmarks.speedups import main
from entmtp.evaluation.report.report import write_report
from entmtp.evaluation.results.rows import REQUEST_SCHEMA, STEP_SCHEMA, as_table
from tests.helpers.blank_figures import blank_figures
from tests.helpers.synthetic_rows import make_rows

SECONDS = {"autoregressive": 3.0, "hydra-best": 2.0}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    requests, steps = make_rows(prompts=4, repetitions=1)
    timed = [replace(row, seconds=SECONDS.get(row.arm, 1.0)) for row in requests]
    folder = tmp_path_factory.mktemp("results")
    provenance = {
        "command": f"jobs/benchmark.py --results {folder}",
        "hardware": "a CPU",
        "date": "2026-01-01",
        "git_commit": "0123456789abc",
        "settings": {"prompts": 4, "max_new_tokens": 8, "repetitions": 1},
    }
    with blank_figures():
        write_report(folder / "report", as_table(timed, REQUEST_SCHEMA), as_table(steps, STEP_SCHEMA), provenance)
    return folder


def test_an_arm_is_told_against_each_other_on_each_suite_and_over_all(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origin, "changed_files", list)
    main(results, "entmtp-dynamic", tmp_path / "record.json")
    told = (tmp_path / "record.json").read_text()
    assert "3.00x [3.00, 3.00]" in told
    assert "2.00x [2.00, 2.00]" in told
    assert "commit 0123456789ab, on a CPU: up to 4 prompts a suite, up to 8 tokens each, one repetition." in told
    made = read_record(tmp_path / "record.json")
    assert (made.commit, made.date) == ("0123456789ab", "2026-01-01"), "of the run, not of the extract"
    assert "jobs/benchmark.py" in told
    assert str(results) not in told
    assert '"all suites' in told
    assert "entmtp-dynamic over" in capsys.readouterr().out


def test_a_run_of_changed_code_is_no_record_unless_asked_for(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origin, "changed_files", list)
    changed = tmp_path / "changed"
    shutil.copytree(results, changed)
    summary = changed / "report" / "summary.json"
    summary.write_text(summary.read_text().replace('"0123456789abc"', '"0123456789abc+"'))
    with pytest.raises(SystemExit):
        main(changed, record=tmp_path / "record.json")
    assert "of commit 0123456789ab with uncommitted changes, so they could" in " ".join(capsys.readouterr().err.split())
    main(changed, record=tmp_path / "record.json", uncommitted=True)
    made = read_record(tmp_path / "record.json")
    assert made.commit == "0123456789ab+"
    assert "commit 0123456789ab with uncommitted changes, on a CPU" in made.notes[0]


def test_an_arm_that_did_not_run_is_refused(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(results, "entmtp-dynamics")
    assert "arm: 'entmtp-dynamics' was compared with none; choose one of" in capsys.readouterr().err
