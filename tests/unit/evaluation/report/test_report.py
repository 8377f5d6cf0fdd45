import io
import json
import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from entmtp.evaluation.analysis.summarise import summarise
from entmtp.evaluation.report.report import WIDE, print_table, write_report
from entmtp.evaluation.results.rows import REQUEST_SCHEMA, STEP_SCHEMA, as_table
from tests.helpers.blank_figures import PNG, blank_figures
from tests.helpers.synthetic_rows import ARMS, SUITES, make_rows, make_tables

FACTS = {
    "profile": "quick",
    "model": "<script>alert(1)</script>",
    "versions": {"torch": "2.9", "cuda": None},
    "nan": float("nan"),
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with blank_figures():
        return write_report(tmp_path_factory.mktemp("report"), *make_tables(prompts=4), FACTS)


@dataclass
class Element:
    """An element of a page, with the tags that it lies in and all text in it."""

    tag: str
    within: list[str]
    attributes: dict[str, str | None]
    pieces: list[str] = field(default_factory=list)

    @cached_property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split())


class Page(HTMLParser):
    """All elements of a page in their order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, [each.tag for each in self._open], dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self._open.append(self.elements[-1])

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.pieces.append(data)

    def all(self, tag: str) -> list[Element]:
        return [element for element in self.elements if element.tag == tag]

    def tables(self) -> list[list[list[Element]]]:
        """The cells of each row of each table."""
        found: list[list[list[Element]]] = []
        for element in self.elements:
            if element.tag == "table":
                found.append([])
            elif element.tag == "tr":
                found[-1].append([])
            elif element.tag in ("th", "td"):
                found[-1][-1].append(element)
        return found


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page(report.read_text(encoding="utf-8"))


def test_page_holds_everything_and_refers_to_nothing(report: Path, page: Page) -> None:
    assert page.all("script") == []
    assert len(page.all("img")) == 6
    addresses = [element.attributes.get(name) for element in page.elements for name in ("src", "href")]
    assert all((address or "data:image/png;base64,").startswith("data:image/png;base64,") for address in addresses)
    assert not re.search(r"https?://|url\(|@import", report.read_text(encoding="utf-8"))


def test_conclusions_come_first_then_figures_then_a_table_per_suite_and_all_else_is_folded(page: Page) -> None:
    seen = [element for element in page.elements if "details" not in element.within]
    tags = ("h1", "img", "table", "details")
    order = [element.tag for element in seen if element.tag in tags]
    assert order == sorted(order, key=tags.index)
    assert (order.count("img"), order.count("table")) == (4, len(SUITES))
    lead = next(element for element in seen if element.attributes.get("class") == "lead")
    assert seen.index(lead) < next(at for at, element in enumerate(seen) if element.tag == "img")
    assert re.search(r"entmtp-\w+ is faster than autoregressive: \d\.\d\dx \[", lead.text)
    assert not any("open" in element.attributes for element in page.all("details"))
    folded = [element.text for element in page.all("summary")]
    for said in ("Every conclusion", "How to read", "Paired comparisons", "More figures", "a step's time", "come from"):
        assert sum(said in title for title in folded) == 1


def test_a_suite_has_one_row_per_arm_with_its_comparisons(page: Page) -> None:
    for rows in page.tables()[: len(SUITES)]:
        head, *body = [[cell.text for cell in row] for row in rows]
        assert head[:6] == ["arm", "tokens/s", "tau", "× autoregressive", "× hydra", "identical"]
        assert [row[0] for row in body] == list(ARMS)
        against = {row[0]: row[3] for row in body}
        assert against["autoregressive"] == ""
        assert re.fullmatch(r"▲ faster \d\.\d\d× \[.+\]", against["bank-oracle"])
        assert re.fullmatch(r"▼ slower 0\.\d\d× \[.+\]", against["medusa"])
        assert (head[-1], body[0][-1]) == ("log-likelihood", "-0.65 [-0.86, -0.44]")
    scored = [rows[0][-2].text for rows in page.tables()[: len(SUITES)]]
    assert scored == ["identical", "exact match", "identical", "identical"]


def test_comparisons_are_matrices_whose_cells_show_verdicts_by_colour_mark_and_word(page: Page) -> None:
    matrices = [rows for rows in page.tables() if rows[0][1].text == "autoregressive"]
    assert len(matrices) == 1 + len(SUITES)
    for head, *body in matrices:
        columns = [cell.text for cell in head]
        cells = {(row[0].text, name): cell for row in body for name, cell in zip(columns, row, strict=True)}
        assert cells["medusa", "autoregressive"].attributes["class"] == "slower"
        assert cells["medusa", "autoregressive"].text.startswith("▼ slower 0.")
        assert cells["entmtp", "medusa"].attributes["class"] == "faster"
        assert cells["entmtp", "medusa"].text.startswith("▲ faster ")
        assert cells["always-big", "entmtp"].text.startswith("▼ slower "), "compared the other way round"
        assert {arms for arms, cell in cells.items() if not cell.text} == {(arm, arm) for arm in columns[1:]}
    all_suites = matrices[0]
    assert len(all_suites) == 1 + len(ARMS)


def test_tables_and_figures_can_be_heard(page: Page) -> None:
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(caption.text for caption in page.all("caption"))
    assert {cell.attributes.get("scope") for cell in page.all("th")} == {"row", "col"}
    assert all(row[0].tag == "th" for rows in page.tables() for row in rows)
    assert all(image.attributes.get("alt") for image in page.all("img"))


def test_wide_things_scroll_in_boxes_of_their_own(page: Page) -> None:
    boxes = [element for element in page.all("div") if element.attributes.get("class") == "scroll"]
    assert len(boxes) == len(page.all("table")) + len(page.all("img"))
    assert all(box.attributes.get("tabindex") == "0" for box in boxes), "a keyboard must reach them"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_the_contrast_that_text_needs(scheme: str) -> None:
    style = files("entmtp.evaluation.report").joinpath("report.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in style.split("@media", 2)[:2])
    colours = light if scheme == "light" else dark
    pairs = [("ink", "paper"), ("faint", "paper"), ("ink", "card"), ("ink", "open-fill"), ("faint", "open-fill")]
    for ink, paper in [*pairs, ("good", "good-fill"), ("bad", "bad-fill"), ("warn-ink", "warn")]:
        assert _contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)


def _contrast(one: str, other: str) -> float:
    """WCAG 2's contrast ratio."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_provenance_is_escaped_and_shown(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert '<th scope="row">versions.torch</th><td>2.9</td>' in page


def test_samples_and_quick_runs_are_named_on_the_page(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    assert "litbench (sample)" in page
    assert not re.search(r">\s*litbench\s*<", page)
    assert "it is not a study" in page


def test_the_quality_of_every_arms_texts_is_on_the_page(page: Page) -> None:
    (table,) = [rows for rows in page.tables() if rows[0][-1].text == "same text"]
    body = [[cell.text for cell in row] for row in table[1:]]
    assert [(row[0].split()[0], row[1]) for row in body] == [(suite, arm) for suite in SUITES for arm in ARMS]
    assert {row[3] for row in body} == {"", "exact match 0.333 (4)"}  # one repetition of three is right
    assert {(row[2], row[4], row[8]) for row in body} == {("4", "-0.650", "12 of 12")}
    assert all((row[6] == "+0.000") == (row[1] != "autoregressive") for row in body)


def test_figures_are_drawn(tmp_path: Path) -> None:
    """A small report with all figures: most of a large one's time is their drawing."""
    arms = ("autoregressive", "medusa", "hydra", "entmtp")
    write_report(tmp_path, *make_tables(arms=arms, suites=("gsm8k",), prompts=3, repetitions=1), FACTS)
    for name in ("speedup", "tau", "entropy", "trees", "shares", "entropy-distribution"):
        drawn = (tmp_path / f"{name}.png").read_bytes()
        assert drawn.startswith(PNG)
        assert len(drawn) > 2000


def test_figures_and_tables_are_files_too(report: Path) -> None:
    folder = report.parent
    for name in ("speedup", "tau", "entropy", "trees", "shares", "entropy-distribution"):
        assert (folder / f"{name}.png").read_bytes().startswith(PNG)
    arms = pq.read_table(folder / "tables" / "arms.parquet")
    assert arms.num_rows == len(ARMS) * len(SUITES)
    assert pa_csv.read_csv(folder / "tables" / "arms.csv")["tau"].to_pylist() == arms["tau"].to_pylist()
    assert not [file.name for file in folder.rglob("*.unfinished")]


def test_summary_is_strict_json(report: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads((report.parent / "summary.json").read_text(), parse_constant=refuse)
    assert content["facts"]["nan"] is None
    assert len(content["tables"]["arms"]) == len(ARMS) * len(SUITES)
    assert any("hydra is slower than autoregressive" in sentence for sentence in content["verdicts"])


def test_report_of_two_prompts_shows_no_speedup(tmp_path: Path) -> None:
    arms = ("autoregressive", "entmtp")
    with blank_figures():
        page = write_report(tmp_path, *make_tables(arms=arms, suites=("gsm8k",), prompts=2), {}).read_text()
    assert "entmtp against autoregressive: no claim" in page
    assert not re.search(r"\d\.\d\d[x×]", page)


def test_the_trees_drawn_are_of_an_arm_that_changes_them(tmp_path: Path) -> None:
    requests, steps = make_rows(prompts=4)
    large, small = "n8-d4-w2-00000000", "n2-d2-w1-00000000"
    trees = {"entmtp": [large, large], "entmtp-dynamic": [large, small]}
    steps = [replace(row, tree=trees[row.arm][row.step % 2]) if row.arm in trees else row for row in steps]
    tables = as_table(requests, REQUEST_SCHEMA), as_table(steps, STEP_SCHEMA)
    with blank_figures():
        page = write_report(tmp_path, *tables, FACTS).read_text(encoding="utf-8")
    assert "Trees that entmtp-dynamic chose" in page
    assert "Trees that entmtp chose" not in page


def test_report_of_one_arm_leaves_out_what_it_cannot_draw(tmp_path: Path) -> None:
    with blank_figures():
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
    assert {row[0] for row in rows if "faster" in row} >= {"entmtp", "entmtp-dynamic", "bank-oracle", "hindsight"}
    assert "litbench (sample)" in table
    assert ("ms per step" in table) == (width >= WIDE)
    assert ({row[-1] for row in rows} == {"-0.60"}) == (width >= WIDE), "the mean of -0.5, -0.6 and -0.7"


def test_terminal_table_fits_where_intervals_are_wild() -> None:
    requests, steps = make_rows(suites=("gsm8k",), prompts=3, repetitions=1)
    rng = np.random.default_rng(0)
    wild = [replace(row, seconds=float(np.exp(rng.normal(0, 1.5)))) for row in requests]
    console = Console(file=io.StringIO(), width=80, color_system=None)
    print_table(console, summarise(as_table(wild, REQUEST_SCHEMA), as_table(steps, STEP_SCHEMA)), FACTS)
    assert isinstance(console.file, io.StringIO)
    table = console.file.getvalue().split("- entmtp")[0]
    assert re.search(r"\[0\.\d\d, \d{3,}\]", table), "an interval up to hundreds"
    assert "…" not in table


def test_terminal_table_counts_differing_requests() -> None:
    requests, steps = make_tables(arms=("autoregressive", "hydra"), suites=("gsm8k",), prompts=3, repetitions=1)
    column = requests.column_names.index("identical")
    requests = requests.set_column(column, requests.schema.field("identical"), pa.array([True] * 5 + [False]))
    console = Console(file=io.StringIO(), width=80, color_system=None)
    print_table(console, summarise(requests, steps), {})
    assert isinstance(console.file, io.StringIO)
    assert "2/3" in console.file.getvalue()
