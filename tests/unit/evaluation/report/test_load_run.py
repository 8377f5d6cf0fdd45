"""A run's report read back, whole or damaged, and the comparison that is printed and written of two."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from entmtp.errors import EntMTPError
from entmtp.evaluation.report.load_run import open_run
from entmtp.evaluation.report.report import write_report
from entmtp.evaluation.results.rows import REQUEST_SCHEMA, STEP_SCHEMA, as_table
from jobs import compare as job
from tests.helpers.blank_figures import blank_figures
from tests.helpers.synthetic_rows import make_rows

FACTS = {"settings": {"max_new_tokens": 64, "repetitions": 2}, "hardware": "one | two", "git_commit": None}
ARMS = ("autoregressive", "entmtp")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two results folders; the second is of a machine that needs a tenth more time."""
    folder = tmp_path_factory.mktemp("runs")
    requests, steps = make_rows(arms=ARMS, suites=("gsm8k",), prompts=4, repetitions=2)
    tables = as_table(requests, REQUEST_SCHEMA), as_table(steps, STEP_SCHEMA)
    with blank_figures():
        write_report(folder / "fast" / "report", *tables, FACTS)
    shutil.copytree(folder / "fast", folder / "slow")
    change(folder / "slow", lambda table: scaled(table, "seconds", 1.1))
    return folder


def change(results: Path, how: Callable[[pa.Table], pa.Table]) -> None:
    path = results / "report" / "requests.parquet"
    pq.write_table(how(pq.read_table(path)), path)


def scaled(table: pa.Table, column: str, factor: float) -> pa.Table:
    values = pa.array([value * factor for value in table[column].to_pylist()], pa.float64())
    return table.set_column(table.column_names.index(column), column, values)


def compare(*arguments: object) -> tuple[int, str]:
    """The job's exit code and everything that it says."""
    app = typer.Typer()
    app.command()(job.main)
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.output


def test_a_report_is_read_back(finished: Path) -> None:
    run = open_run(str(finished / "fast"), None)
    assert run.name == str(finished / "fast")
    assert run.provenance == {
        "settings.max_new_tokens": "64",
        "settings.repetitions": "2",
        "hardware": "one | two",
        "git_commit": "–",
    }
    assert run.requests.schema == REQUEST_SCHEMA
    assert run.requests.num_rows == 4 * 2 * 2
    assert open_run(f"baseline={finished / 'fast'}", None).name == "baseline"


def test_a_folder_whose_name_looks_like_a_label_is_a_folder(finished: Path) -> None:
    shutil.copytree(finished / "fast", finished / "a=b")
    assert open_run(str(finished / "a=b"), None).name == str(finished / "a=b")


def cut(results: Path) -> None:
    path = results / "report" / "requests.parquet"
    path.write_bytes(path.read_bytes()[:-200])


def write_summary(text: str) -> Callable[[Path], object]:
    return lambda results: (results / "report" / "summary.json").write_text(text)


def grow(results: Path) -> None:
    with (results / "report" / "summary.json").open("r+b") as file:
        file.truncate(65 << 20)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda results: shutil.rmtree(results / "report"), "summary.json does not exist; run the benchmark again"),
        (lambda results: (results / "report" / "requests.parquet").unlink(), "requests.parquet does not exist"),
        (cut, r"requests\.parquet' cannot be read"),
        (lambda results: change(results, lambda table: table.drop_columns("steps")), "no column 'steps'"),
        (lambda results: change(results, lambda table: text_in(table, "steps")), "holds other values"),
        (lambda results: change(results, lambda table: nothing_in(table, "arm")), "holds other values"),
        (lambda results: change(results, lambda table: scaled(table, "seconds", 0)), "took no time"),
        (lambda results: change(results, lambda table: scaled(table, "seconds", float("nan"))), "took no time"),
        (lambda results: change(results, lambda table: table.slice(0, 0)), "has no requests"),
        (write_summary("{"), "not a report's summary"),
        (write_summary("[]"), "not a report's summary"),
        (write_summary("{}"), "not a report's summary"),
        (write_summary("[" * 200_000), "not a report's summary"),
        (write_summary('{"facts": []}'), "has no facts"),
        (grow, "more than 64 MiB"),
    ],
)
def test_a_damaged_run_is_reported_in_a_line(
    finished: Path, tmp_path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    shutil.copytree(finished / "fast", tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(EntMTPError, match=reason) as caught:
        open_run(f"broken={tmp_path / 'run'}", None)
    assert str(caught.value).startswith("run 'broken': ")
    assert "\n" not in str(caught.value)
    code, said = compare(finished / "fast", f"broken={tmp_path / 'run'}")
    assert code == 2
    assert said.startswith("entmtp compare: run 'broken': ")


def text_in(table: pa.Table, column: str) -> pa.Table:
    return table.set_column(table.column_names.index(column), column, pa.array(["many"] * table.num_rows))


def nothing_in(table: pa.Table, column: str) -> pa.Table:
    return table.set_column(table.column_names.index(column), column, pa.nulls(table.num_rows, pa.string()))


@pytest.mark.parametrize("given", ["nowhere", "a=nowhere", "=nowhere", "a="])
def test_what_is_no_run_is_reported_in_a_line(finished: Path, given: str) -> None:
    with pytest.raises(EntMTPError, match=r"^run: "):
        open_run(given, None)
    assert compare(finished / "fast", given)[0] == 2


def test_the_job_prints_and_writes_the_comparison(finished: Path, tmp_path: Path) -> None:
    code, said = compare(f"fast={finished / 'fast'}", f"slow={finished / 'slow'}", "--output", tmp_path / "comparison")
    assert code == 0
    assert "0.91 [0.91, 0.91]" in said
    assert "not paired in time" in said
    page = (tmp_path / "comparison" / "comparison.md").read_text(encoding="utf-8")
    lines = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert len({len(line) for line in lines[: 2 + 2 * 2 + 2]}) == 1
    assert [line[1:3] for line in lines if line[0] == "| all suites"] == [[arm, "slow"] for arm in ARMS]
    ratios = pa_csv.read_csv(tmp_path / "comparison" / "tables" / "ratios.csv").to_pylist()
    assert {(row["suite"], row["arm"], row["run"], row["verdict"]) for row in ratios} == {
        (suite, arm, "slow", "slower") for suite in ("gsm8k", "all suites") for arm in ARMS
    }
    assert {row["run"] for row in pq.read_table(tmp_path / "comparison" / "tables" / "arms.parquet").to_pylist()} == {
        "fast",
        "slow",
    }
    assert not list((tmp_path / "comparison").rglob("*.unfinished"))


def test_bars_in_provenance_do_not_break_the_page(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "slow", tmp_path / "slow")
    summary = tmp_path / "slow" / "report" / "summary.json"
    content = json.loads(summary.read_text())
    content["facts"]["hardware"] = "three"
    summary.write_text(json.dumps(content))
    compare(f"fast={finished / 'fast'}", f"slow={tmp_path / 'slow'}", "--output", tmp_path)
    page = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "| hardware | one \\| two | three |" in page


def test_the_gate_ends_with_one(finished: Path) -> None:
    pair = (f"fast={finished / 'fast'}", f"slow={finished / 'slow'}")
    code, said = compare(*pair, "--fail-below", 0.97)
    assert code == 1
    assert sum(line.startswith("regression: ") for line in said.splitlines()) == 2 * len(ARMS)
    assert compare(*pair, "--fail-below", 0.9)[0] == 0
    assert compare(*reversed(pair), "--fail-below", 0.97)[0] == 0
    assert compare(*pair, "--fail-below", 0)[0] == 2
    assert compare(pair[0])[0] == 2
    assert compare()[0] == 2
