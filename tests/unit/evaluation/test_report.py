import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from entmtp.evaluation.metrics import summarise
from entmtp.evaluation.report import WIDE, print_table, write_report
from entmtp.evaluation.rows import REQUEST_SCHEMA, STEP_SCHEMA, as_table
from tests.unit.evaluation.synthetic import ARMS, SUITES, make_rows

FACTS = {
    "profile": "quick",
    "model": "<script>alert(1)</script>",
    "versions": {"torch": "2.9", "cuda": None},
    "nan": float("nan"),
}
_PNG = b"\x89PNG\r\n\x1a\n"


def make_tables(**chosen: object) -> tuple[pa.Table, pa.Table]:
    requests, steps = make_rows(**chosen)  # type: ignore[arg-type]
    return as_table(requests, REQUEST_SCHEMA), as_table(steps, STEP_SCHEMA)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("report"), *make_tables(prompts=4), FACTS)


class _Elements(HTMLParser):
    """Counts elements and collects every address that a page refers to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_holds_everything_and_refers_to_nothing(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    elements = _Elements(page)
    assert elements.open == []
    assert "script" not in elements.count
    assert elements.count["img"] == 6
    assert all(address.startswith("data:image/png;base64,") for address in elements.addresses)
    assert not re.search(r"https?://|url\(|@import", page)


def test_facts_are_escaped_and_told(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<td>versions.torch</td><td>2.9</td>" in page


def test_samples_and_quick_runs_are_named_on_the_page(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    assert "litbench (sample)" in page
    assert not re.search(r">\s*litbench\s*<", page)
    assert "it is not a study" in page


def test_figures_and_tables_are_files_too(report: Path) -> None:
    folder = report.parent
    for name in ("speedup", "tau", "entropy", "trees", "shares", "entropy-distribution"):
        assert (folder / f"{name}.png").read_bytes().startswith(_PNG)
    arms = pq.read_table(folder / "tables" / "arms.parquet")
    assert arms.num_rows == len(ARMS) * len(SUITES)
    assert pa_csv.read_csv(folder / "tables" / "arms.csv")["tau"].to_pylist() == arms["tau"].to_pylist()
    assert not [file.name for file in folder.rglob("*.unfinished")]


def test_summary_is_strict_json(report: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    held = json.loads((report.parent / "summary.json").read_text(), parse_constant=refuse)
    assert held["facts"]["nan"] is None
    assert len(held["tables"]["arms"]) == len(ARMS) * len(SUITES)
    assert any("hydra is slower than autoregressive" in sentence for sentence in held["verdicts"])


def test_report_of_two_prompts_shows_no_speedup(tmp_path: Path) -> None:
    arms = ("autoregressive", "entmtp")
    page = write_report(tmp_path, *make_tables(arms=arms, suites=("gsm8k",), prompts=2), {}).read_text()
    assert "entmtp against autoregressive: no claim" in page
    assert not re.search(r"\d\.\d\dx", page)


def test_the_trees_drawn_are_of_an_arm_that_changes_them(tmp_path: Path) -> None:
    requests, steps = make_rows(prompts=4)
    trees = {"entmtp": ["n8", "n8"], "entmtp-dynamic": ["n8", "n2"]}
    steps = [replace(row, tree=trees[row.arm][row.step % 2]) if row.arm in trees else row for row in steps]
    tables = as_table(requests, REQUEST_SCHEMA), as_table(steps, STEP_SCHEMA)
    page = write_report(tmp_path, *tables, FACTS).read_text(encoding="utf-8")
    assert "Trees that entmtp-dynamic chose" in page
    assert "Trees that entmtp chose" not in page


def test_report_of_one_arm_leaves_out_what_it_cannot_draw(tmp_path: Path) -> None:
    write_report(tmp_path, *make_tables(arms=("autoregressive",), suites=("gsm8k",), prompts=3), {})
    assert {file.name for file in tmp_path.glob("*.png")} == {"tau.png", "entropy-distribution.png"}


def printed(width: int, **chosen: object) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_table(console, summarise(*make_tables(**chosen)), FACTS)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, WIDE])
def test_terminal_table_fits_and_cuts_nothing(width: int) -> None:
    text = printed(width, prompts=3)
    table = text[: text.index("- entmtp")]
    assert "…" not in table
    assert max(map(len, table.splitlines())) <= width
    rows = [line.split() for line in table.splitlines() if line.split()[:1] and line.split()[0] in ARMS]
    assert len(rows) == len(ARMS) * len(SUITES)
    assert {row[0] for row in rows if "slower" in row} == {"medusa", "hydra", "always-big"}
    assert "litbench (sample)" in table
    assert ("ms per step" in table) == (width >= WIDE)


def test_terminal_table_counts_differing_requests() -> None:
    requests, steps = make_tables(arms=("autoregressive", "hydra"), suites=("gsm8k",), prompts=3, repetitions=1)
    place = requests.column_names.index("identical")
    requests = requests.set_column(place, requests.schema.field("identical"), pa.array([True] * 5 + [False]))
    console = Console(file=io.StringIO(), width=80, color_system=None)
    print_table(console, summarise(requests, steps), {})
    assert isinstance(console.file, io.StringIO)
    assert "2/3" in console.file.getvalue()
