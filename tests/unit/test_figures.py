"""Numbers in the pages that people write are those of the records, of arithmetic, or of the code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import pytest

from benchmarks.lib.record import Record, read_record
from benchmarks.lib.shapes import SHAPES, Shape
from benchmarks.performance import RECORDS
from deployments import log_file
from entmtp.decoding.acceptance import TYPICAL_ALPHA, TYPICAL_EPSILON
from entmtp.evaluation.run.dry_run import ASSUMED_TOKENS_PER_SECOND
from entmtp.intervals import CONFIDENCE
from entmtp.models.kernels.choices import HALF_TOLERANCE, INT8_TOLERANCE, INT16_TOLERANCE, TOLERANCE
from entmtp.models.loading.bundled import GGUF_BYTES
from entmtp.policies.online_cost import TOLERANCE as COST_TOLERANCE
from entmtp.policies.probing import SHARE
from entmtp.settings import PAPER_TEMPERATURE
from entmtp.suites.jail import MAX_MEMORY_BYTES
from entmtp.suites.sandbox import TIME_LIMIT_SECONDS
from tests.helpers.paths import ROOT

GENERATED = {"performance.md", "study.md"}
PAGES = {
    path.name if path.parent == ROOT else f"docs/{path.name}": path
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    if path.name not in GENERATED
}


@cache
def record(name: str) -> Record:
    return read_record(RECORDS / f"{name}.json")


def cell(name: str, row: tuple[str, ...], column: str, title: str = "") -> float:
    """The first number in a cell of a record: of the row that begins with ``row``, in the table with this title."""
    tables = [table for table in record(name).tables if title in table.title and column in table.columns]
    rows = [each for table in tables[:1] for each in table.rows if tuple(map(str, each[: len(row)])) == row]
    assert len(rows) == 1, f"{name} has {len(rows)} rows {row}"
    found = re.match(r"-?\d+(?:\.\d+)?", str(rows[0][tables[0].columns.index(column)]))
    assert found, f"{name}: no number in {row}, {column}"
    return float(found[0])


def over_plain(users: int, method: str) -> float:
    return cell("h200-engine", (str(users), method), "over autoregressive")


def step_over_plain(name: str, where: str) -> float:
    return cell(name, ("63",), "over plain", f"ms of a step by node budget, {where}")


def parameters(shape: Shape) -> int:
    """Weights of a Llama of this shape, its output layer included."""
    layer = 4 * shape.hidden**2 + 3 * shape.hidden * shape.intermediate + 2 * shape.hidden
    return shape.layers * layer + 2 * shape.vocab * shape.hidden + shape.hidden


VICUNA = SHAPES["vicuna-7b"]

WEIGHTS_GB = parameters(VICUNA) * 2 / 1e9
OUTPUT_GB = VICUNA.vocab * VICUNA.hidden * 2 / 1e9
MEDUSA_GB = 5 * (OUTPUT_GB + (VICUNA.hidden**2 + VICUNA.hidden) * 2 / 1e9)
CACHE_MIB = 2 * VICUNA.layers * VICUNA.hidden * 2 / 2**20
"""Of one token in 16 bits: a key and a value of every layer, as wide as the model."""


@dataclass(frozen=True)
class Figure:
    """Words of a page with numbers in them; ``words`` has a field for each of ``numbers``."""

    page: str
    words: str
    numbers: tuple[float, ...]

    @property
    def text(self) -> str:
        return self.words.format(*self.numbers)


def figure(page: str, words: str, *numbers: float) -> Figure:
    return Figure(page, words, numbers)


FIGURES = [
    figure("README.md", "SmolLM2-135M-Instruct in 4 bits, {:.0f} MB, Apache-2.0", GGUF_BYTES / 1e6),
    figure("README.md", "with a {:.0%} interval over prompts", CONFIDENCE),
    figure("README.md", "and at the paper's {}, and renders", PAPER_TEMPERATURE),
    figure("README.md", "measures at temperature {} with Medusa's typical acceptance", PAPER_TEMPERATURE),
    figure(
        "README.md",
        "{:.1%} in float32, {:.0%} where the model is in 16 bits",
        TOLERANCE,
        HALF_TOLERANCE,
    ),
    figure(
        "README.md",
        "The test allows them {:.0%} and {:.0%} from the model's own logits",
        INT16_TOLERANCE,
        INT8_TOLERANCE,
    ),
    figure(
        "docs/README.md",
        "a plain step of which takes {:.1f} ms: with 1, 4 and 16 users `entmtp-goodput` wrote {:.2f}, {:.2f} and {:.2f}"
        " times as fast as plain decoding, `entmtp-dynamic` {:.2f}, {:.2f} and {:.2f} times.",
        1e3 / cell("h200-engine", ("1", "autoregressive"), "tokens/s"),
        *(over_plain(users, method) for method in ("entmtp-goodput", "entmtp-dynamic") for users in (1, 4, 16)),
    ),
    figure("docs/README.md", "128): {:.1f} GB of weights", WEIGHTS_GB),
    figure("docs/README.md", "so 1 GiB and {:.0f} MiB for each slot of 2,048 tokens", CACHE_MIB * 64),
    figure("docs/README.md", "That is {:.2f} GB for Vicuna-7B with 32 slots", 32 * 64 * (32_000 + 4_096) * 2 / 1e9),
    figure("docs/bring-your-own-heads.md", "({:.1f} GB of memory for 7B)", WEIGHTS_GB),
    figure(
        "docs/bring-your-own-heads.md",
        "{:.0f} GB of weights for Vicuna-7B, {:.0f} GB for five Medusa heads",
        2 * WEIGHTS_GB,
        2 * MEDUSA_GB,
    ),
    figure(
        "docs/bring-your-own-heads.md",
        "are {:.1f} GB in 16 bits, of which {:.1f} GB are output layers",
        MEDUSA_GB,
        5 * OUTPUT_GB,
    ),
    figure(
        "docs/cluster-benchmark.md",
        "for twelve arms, 1,024 tokens and Vicuna-7B in bfloat16 ({:.1f} MiB per token) {:.0f} GiB",
        CACHE_MIB,
        12 * CACHE_MIB,
    ),
    figure("docs/cluster-benchmark.md", "an assumed {:.0f} tokens/s", ASSUMED_TOKENS_PER_SECOND),
    figure(
        "docs/how-it-works.md",
        "63 nodes takes {:.1f} plain steps; for a 7B model on an H200 it takes"
        " [{:.1f}](performance.md#nvidia-h200-torch-2110cu130) with one request, and {:.1f} with sixteen",
        step_over_plain("cpu-step", "batch 1, context 160"),
        step_over_plain("h200-step-vicuna-7b", "batch 1, context 512"),
        step_over_plain("h200-step-vicuna-7b", "batch 16, context 512"),
    ),
    figure("docs/how-it-works.md", "all charges together stay below {:.0%} of the time", SHARE),
    figure("docs/how-it-works.md", "by more than {:.0%} against another's", COST_TOLERANCE),
    figure("docs/serving.md", "that takes {:.0%} of the time at most", SHARE),
    figure("docs/reproducing-the-paper.md", "did: temperature {} and typical", PAPER_TEMPERATURE),
    figure("docs/serving.md", "keeps its last {:.0f} MB", log_file._FILE_BYTES * log_file._FILES / 1e6),
    figure("docs/serving.md", "so that {:.0f} GB and {} files", log_file._FOLDER_BYTES / 1e9, log_file._FOLDER_FILES),
    figure("docs/suites.md", "read-only and {:.0f} GiB of memory", MAX_MEMORY_BYTES / 2**30),
    figure("docs/suites.md", "for at most {:.0f} seconds", TIME_LIMIT_SECONDS),
    figure("docs/suites.md", "measured at temperature {}", PAPER_TEMPERATURE),
    figure("docs/suites.md", "(epsilon {}, alpha {})", TYPICAL_EPSILON, TYPICAL_ALPHA),
    figure("docs/suites.md", "greedy arms it uses temperature {}", PAPER_TEMPERATURE),
]

NOT_MEASURED = {
    "README.md": ["With Python 3.11 and pip", "autoregressive decoding is 1.0", "of compute capability 8.0"],
    "docs/README.md": ["a card of 16 GB only", "24 GB are enough for 8 slots of 1,024 tokens, 80 GB for 32 slots"],
    "docs/bring-your-own-heads.md": ["a card of 48 GB or more"],
    "docs/deploy.md": ["(1.5 or newer)"],
    "docs/reproducing-the-paper.md": ["| 0.7 |"],
    "docs/serving.md": ["| Llama 3.1 to 3.3 |", "more than 1.5 seconds to compile"],
    "docs/suites.md": ["| 0.7 |"],
}
"""What a reader gives, needs or chooses: nothing that was found out."""

NUMBER = re.compile(
    r"""(?<![\w./`-])\d[\d,]*(?:\.\d+)?[ -]?(?:x|×|ms|s|seconds?|minutes?|hours?|times|[KMGT]i?B|%|tokens/s|nats)(?!\w)
    |(?<![\w./-])\d+\.\d+(?![.\w/])
    |\b(?:two|three|four|five|six|seven|eight|nine|ten|a\ dozen|half\ an|an|one)\ (?:seconds?|minutes?|hours?)\b
    |\b(?:two|three|four|five|six|seven|eight|nine|ten)\ (?:plain\ steps|times\ as|times\ faster|percent)\b""",
    re.VERBOSE,
)


def prose(page: str) -> str:
    """A page's text in one line, without blocks of code and numbers of papers."""
    text = re.sub(r"```.*?```", "", PAGES[page].read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(re.sub(r"arXiv \d+\.\d+", "", text).split())


@pytest.mark.parametrize("one", FIGURES, ids=lambda one: f"{one.page}: {one.words[:40]}")
def test_a_page_has_the_number_of_its_source(one: Figure) -> None:
    assert one.text in prose(one.page)


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_measured_number_of_a_page_has_a_source(page: str) -> None:
    text = prose(page)
    known = [*NOT_MEASURED.get(page, ()), *(one.text for one in FIGURES if one.page == page)]
    for words in known:
        assert words in text, words
        text = text.replace(words, " … ")
    text = re.sub(r"`[^`]*`", "", text)
    found = [text[max(0, number.start() - 40) : number.end() + 20] for number in NUMBER.finditer(text)]
    assert found == [], "add them to FIGURES with the record's cell that they are from"


def test_numbers_of_all_forms_are_seen() -> None:
    for text in ("1.05x", "6.9 times", "540 MB", "41%", "takes 23 ms", "tau of 2.31", "in two seconds", "an hour"):
        assert NUMBER.search(text), text
    for text in ("max_nodes 3", "63 nodes", "transformers-5.2", "docs/performance.md", "1,024 tokens"):
        assert not NUMBER.search(text), text
