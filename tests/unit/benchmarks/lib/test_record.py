"""Records and the page that they render to."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from benchmarks import performance
from benchmarks.lib import record
from benchmarks.lib.age import SINCE
from benchmarks.lib.record import Record, Table, command_line, make_record, read_record, read_records, write_record
from benchmarks.study import __main__ as study
from entmtp.errors import EntMTPError

TABLE = Table(title="times", columns=["nodes", "ms"], rows=[[0, 1.5], [63, "2 | 3"]])


def sample_record(name: str = "step", machine: str = "a CPU", **changes: str) -> Record:
    fields = make_record(name, f"title of {name}", machine, [TABLE], ["It is so.", "It is good."]).model_dump()
    fixed = {"date": "2026-01-01T00:00:00+00:00", "commit": "abc", "command": "python -m benchmarks.step"}
    return Record.model_validate(fields | fixed | changes)


def test_it_says_where_it_comes_from() -> None:
    fresh = make_record("step", "title", "a CPU", [TABLE])
    assert set(fresh.versions) == {"python", "torch", "transformers"}
    assert fresh.date.endswith("+00:00")
    assert fresh.command.startswith("python ")


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "step.json"
    write_record(path, sample_record())
    assert read_record(path) == sample_record()
    assert list(path.parent.iterdir()) == [path]


def test_rows_have_a_cell_for_each_column() -> None:
    with pytest.raises(ValidationError, match="row 1 has 1 cells for 2 columns"):
        Table(title="times", columns=["nodes", "ms"], rows=[[0, 1.5], [63]])


def test_a_file_that_is_no_record_is_reported_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    with pytest.raises(EntMTPError, match=r"step\.json can't be read"):
        read_record(path)
    path.write_text(json.dumps(sample_record().model_dump() | {"tables": []}))
    with pytest.raises(EntMTPError, match=r"step\.json: tables: List should have at least 1 item"):
        read_record(path)


def test_each_machine_has_its_section_with_command_and_date() -> None:
    page = performance.render([sample_record("b", "Z"), sample_record("a", "A"), sample_record("c", "Z")], "2026-01-02")
    heads = [line for line in page.splitlines() if line.startswith("##")]
    assert heads == ["## A", "### title of a", "## Z", "### title of b", "### title of c", "## On a GPU"]
    assert page.count("python -m benchmarks.step\n") == page.count("2026-01-01T00:00:00+00:00, commit abc,") == 3
    assert "| 63 | 2 \\| 3 |" in page
    assert "- It is so.\n- It is good.\n" in page


def test_the_page_says_that_no_gpu_was_measured_until_one_was() -> None:
    assert "Not measured on a GPU yet by `make gpu`" in performance.render([sample_record()], "2026-01-02")
    page = performance.render([sample_record(), sample_record("gpu", "a GPU")], "2026-01-02")
    assert "Not measured on a GPU" not in page
    assert "## a GPU\n\n### title of gpu" in page


def test_a_section_says_what_its_code_was_and_how_old_it_is() -> None:
    page = performance.render([sample_record("step", commit="abc+")], "2026-01-02")
    assert ", commit abc with uncommitted changes, python" in page
    assert "counted as of 2026-01-02." in " ".join(page.split())
    assert page.count(f"\n{SINCE}unknown, as its commit is not in this history.\n") == 1


def ageless(page: str) -> str:
    """A page without what depends on the day on which it was rendered."""
    return re.sub(rf"^{SINCE}.*$|as of [\d-]+", "", page, flags=re.MULTILINE)


def test_the_committed_page_is_what_the_committed_records_render_to() -> None:
    page, records = performance.PAGE.read_text(encoding="utf-8"), read_records(performance.RECORDS)
    assert ageless(page) == ageless(performance.render(records, "2026-01-02"))
    assert page.count(SINCE) == len(records)


def test_the_committed_study_ends_with_its_committed_records() -> None:
    records = list(study.records_section(read_records(study.FOLDER), study.FOLDER.name))
    page = study.FOLDER.with_suffix(".md").read_text(encoding="utf-8")
    assert ageless(page).endswith(ageless("\n".join(records).rstrip() + "\n"))


def test_an_unknown_set_is_an_error() -> None:
    with pytest.raises(EntMTPError, match="set 'tpu' is unknown; choose one of cpu, cuda"):
        performance.measure("tpu")


@pytest.mark.parametrize("uncommitted", [False, True])
def test_a_set_is_measured_by_its_commands(uncommitted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], cwd: Path, check: bool) -> subprocess.CompletedProcess[str]:
        ran.append(command[1:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    performance.measure("cluster", uncommitted)
    target = "docs/performance/cluster-fanout.json"
    assert ran == [["-m", "benchmarks.fanout", "--record", target, *["--uncommitted"] * uncommitted]]


def test_a_command_line_can_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/step.py", "--nodes", "3", "--model", "a b"])
    assert record.command_line().endswith("--nodes 3 --model 'a b'")
    assert "/somewhere" not in record.command_line()


def test_a_command_names_no_folder_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv", ["benchmarks/step.py", "--record", "docs/one.json", "--python", "/a/b/c/bin/python"]
    )
    assert command_line().endswith("--record docs/one.json --python .../c/bin/python")
