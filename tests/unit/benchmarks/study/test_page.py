"""The study's page, from a report of made-up rows."""

import inspect
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from benchmarks import origin
from benchmarks.lib.record import Table, make_record, write_record
from benchmarks.study import __main__ as study
from benchmarks.study.__main__ import publish
from benchmarks.study.claims import claims
from benchmarks.study.input import read_if_run, read_study
from benchmarks.study.sampled import sampled_runs
from entmtp.errors import EntMTPError
from entmtp.evaluation.analysis.summarise import summarise
from entmtp.evaluation.analysis.summary import Summary, tables
from entmtp.evaluation.report.report import write_report
from entmtp.evaluation.results.rows import REQUEST_SCHEMA, STEP_SCHEMA, RequestRow, as_table
from entmtp.intervals import Estimate, LogMean
from entmtp.settings import STUDIES
from tests.helpers.benchmark_commands import main_of
from tests.helpers.blank_figures import blank_figures
from tests.helpers.synthetic_rows import make_rows

FACTS = {
    "command": "jobs/benchmark.py --profile study",
    "hardware": "a | CPU",
    "model": "/home/somebody/cache/models/tiny",
    "date": "2026-01-01",
    "git_commit": "0123abc",
    "settings": {"prompts": 4},
    "hashes": {"model": "unshown"},
}
SECONDS = {
    "autoregressive": 1.0,
    "medusa": 2.0,
    "hydra": 1.5,
    "medusa-best": 0.8,
    "hydra-best": 0.8,
    "entmtp": 0.8,
    "entmtp-goodput": 1.1,
    "entmtp-dynamic": 0.5,
    "entmtp-transfer": 0.55,
    "entmtp-mixed": 0.5,
    "always-big": 2.0,
    "random": 0.6,
    "bank-oracle": 0.4,
    "hindsight": 0.25,
}


def timed(rows: list[RequestRow]) -> list[RequestRow]:
    return [replace(row, seconds=SECONDS[row.arm]) for row in rows]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    requests, steps = make_rows(prompts=4, repetitions=1)
    folder = tmp_path_factory.mktemp("results") / "report"
    with blank_figures():
        write_report(folder, as_table(timed(requests), REQUEST_SCHEMA), as_table(steps, STEP_SCHEMA), FACTS)
    return folder


@pytest.fixture(scope="module")
def page(report: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "study"
    table = Table(title="a table", columns=["signal", "loss"], rows=[["entropy", 0.5]])
    write_record(folder / "signals.json", make_record("signals", "What each signal knows", "a CPU", [table], ["Note."]))
    return publish(report, folder, sampled_runs(None, None), "2026-01-02")


def test_no_path_of_the_machine_is_printed(page: Path) -> None:
    text = page.read_text()
    assert ".../cache/models/tiny" in text
    assert "somebody" not in text


def found(summary: Summary) -> list[str]:
    return [" ".join(claim.found) for claim in claims(summary)]


def test_a_report_is_read_back_as_it_was(report: Path) -> None:
    requests, steps = make_rows(prompts=4, repetitions=1)
    summary = summarise(as_table(timed(requests), REQUEST_SCHEMA), as_table(steps, STEP_SCHEMA))
    study = read_study(report)
    assert study.provenance == FACTS
    assert {name: table.to_pylist() for name, table in tables(study.summary).items()} == {
        name: table.to_pylist() for name, table in tables(summary).items()
    }


def test_the_page_has_its_sections_in_order(page: Path) -> None:
    heads = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    sections = [head for head in heads if not head.startswith("### ")]
    assert sections == [
        "# Study",
        "## What was run",
        "## Speed",
        "## Quality",
        "## The paper's claims, and the results",
        "## At temperature 0.7",
        "## Figures",
        "## Other benchmarks",
    ]
    below = heads.index("## At temperature 0.7")
    assert [head[:6] for head in heads[below - 8 : below]] == [f"### {number}." for number in range(1, 9)]
    assert heads[below + 1 : below + 3] == ["### Lossless", "### Typical acceptance"]
    assert heads[-1] == "### What each signal knows"


def test_the_page_says_what_was_run(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "| command | jobs/benchmark.py --profile study |" in text
    assert "| hardware | a \\| CPU |" in text
    assert "| settings.prompts | 4 |" in text
    assert "unshown" not in text
    assert "litbench: prompts are this project's own small sample" in text


def test_the_main_table_has_a_row_for_each_suite_and_arm(page: Path) -> None:
    speed = page.read_text(encoding="utf-8").split("## Speed")[1].split("## Quality")[0]
    rows = [line for line in speed.splitlines() if re.match(r"\| gsm8k \| ", line)]
    assert len(rows) == len(SECONDS)
    dynamic = next(row for row in rows if "| entmtp-dynamic |" in row).split(" | ")
    assert dynamic[5:] == ["2.00x [2.00, 2.00]", "3.00x [3.00, 3.00]", "1.60x [1.60, 1.60]", "1.20x [1.20, 1.20] |"]


def test_the_quality_table_has_a_row_for_each_suite_and_arm(page: Path) -> None:
    quality = page.read_text(encoding="utf-8").split("## Quality")[1].split("## The paper")[0]
    rows = [line.split(" | ") for line in quality.splitlines() if re.match(r"\| gsm8k \| ", line)]
    assert len(rows) == len(SECONDS)
    shown = next(row for row in rows if row[1] == "entmtp-dynamic")
    assert shown[2:5] == ["4", "exact match 1.000 (4)", "-0.650"]
    assert shown[6:] == ["+0.000", "[0.000, 0.000]", "4 of 4 |"]


def test_a_temperature_that_was_not_run_is_printed_with_its_command(page: Path) -> None:
    section = page.read_text(encoding="utf-8").split("## At temperature 0.7")[1].split("## Figures")[0]
    for command in ("study-lossless", "study-typical"):
        line = f"python jobs/local.py jobs/benchmark.py --profile {command} --results results/{command}"
        assert f"\n{line}\n" in section
    assert section.count("Not run.") == 2
    assert "tokens/s" not in section


def test_a_temperatures_run_is_reported_with_speed_likelihood_and_the_papers_numbers(
    report: Path, tmp_path: Path
) -> None:
    requests, steps = make_rows(arms=("autoregressive", "medusa", "hydra", "entmtp"), prompts=4)
    likelier = [
        replace(row, log_likelihood=row.log_likelihood + 0.2, identical=False) if row.arm == "hydra" else row
        for row in timed(requests)
    ]
    provenance = FACTS | {"settings": {"prompts": 4, "max_new_tokens": 64, "repetitions": 3, "acceptance": "typical"}}
    other = tmp_path / "typical" / "report"
    with blank_figures():
        write_report(other, as_table(likelier, REQUEST_SCHEMA), as_table(steps, STEP_SCHEMA), provenance)
    page = publish(report, tmp_path / "study", sampled_runs(read_if_run(tmp_path), read_if_run(other)), "2026-01-02")
    lossless, typical = page.read_text().split("### Lossless")[1].split("## Figures")[0].split("### Typical acceptance")
    assert "Not run." in lossless
    assert "Not run." not in typical
    assert (
        "commit 0123abc, on a | CPU: up to 4 prompts a suite, up to 64 tokens each, the median of 3 repetitions."
        in typical
    )
    assert "entmtp against hydra, where the paper has 1.09x to 1.15x: humaneval 1.8" in typical
    assert "entmtp against medusa, where the paper has up to 1.36x: humaneval 2.50x [2.50, 2.50] (above)" in typical
    assert "nats per token: the same with medusa, entmtp; +0.200 [0.200, 0.200] with hydra" in typical
    assert "- Typical acceptance (Medusa's, arXiv 2401.10774) writes other texts" in typical
    assert "| suite | arm | prompts | tokens/s | tau | over autoregressive | over hydra |" in typical
    row = next(line for line in typical.splitlines() if line.startswith("| gsm8k | hydra | 4 | exact match"))
    assert "| -0.450 |" in row
    assert "| +0.200 | [0.200, 0.200] | 0 of 12 |" in row


def test_every_figure_is_next_to_the_page(page: Path, report: Path) -> None:
    linked = re.findall(r"!\[[^]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    assert {Path(link).name for link in linked} == {path.name for path in report.glob("*.png")}
    assert all((page.parent / link).is_file() for link in linked)


def test_records_are_on_the_page(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "| entropy | 0.5 |" in text
    assert "- Note.\n" in text


def test_claims_are_computed_from_the_tables(report: Path) -> None:
    entropy, published, ladder, static, shuffled, slower, shares, banks = found(read_study(report).summary)
    assert entropy.startswith("Holds on 4 of 4 suites")
    assert "entmtp-dynamic against hydra, where the paper has 1.09x to 1.15x: humaneval 3.00x [3.00, 3.00] (above)" in (
        published
    )
    assert "entmtp against medusa, where the paper has up to 1.36x: " in published
    assert "this comparison is easy to win" in published
    assert ladder.startswith(
        "entmtp, the paper's ladder of trees by entropy: 1.00 of the speed of hydra-best, suite by suite:"
        " humaneval 1.00x [1.00, 1.00] (inconclusive), gsm8k 1.00x [1.00, 1.00] (inconclusive), "
    )
    assert "all suites (1 of 4 sample) 1.00x [1.00, 1.00] (inconclusive)." in ladder
    assert ladder.endswith("makes it a static tree: humaneval 3, gsm8k 3, sharegpt 3, litbench (sample) 3.")
    assert static.startswith("entmtp-dynamic against hydra-best: faster in 4 of 4 comparisons.")
    assert "gsm8k: entmtp-dynamic is 1.20x [1.20, 1.20] as fast as random: faster." in shuffled
    assert slower.startswith(
        "Does not hold. Adaptive arms, suite by suite: faster in 16, slower in 4 of 20 comparisons."
    )
    assert "gsm8k: entmtp-goodput is 0.91x [0.91, 0.91] as fast as autoregressive: slower." in slower
    assert shares.startswith("A share is the arm's speed over the yardstick's")
    assert "entmtp-dynamic reaches of bank-oracle's speed: humaneval 80% [80%, 80%], gsm8k 80% [80%, 80%], " in shares
    assert "entmtp-goodput reaches of hindsight's speed: humaneval 23% [23%, 23%], " in shares
    assert shares.count("all suites") == 6
    assert "gsm8k: entmtp-dynamic is 1.10x [1.10, 1.10] as fast as entmtp-transfer: faster." in banks
    assert "gsm8k: entmtp-dynamic is 1.00x [1.00, 1.00] as fast as entmtp-mixed: inconclusive." in banks


def test_claims_without_their_arms_or_enough_prompts_are_not_made() -> None:
    requests, steps = make_rows(arms=("autoregressive", "entmtp"), suites=("gsm8k",), prompts=2, repetitions=1)
    summary = summarise(as_table(requests, REQUEST_SCHEMA), as_table(steps, STEP_SCHEMA))
    entropy, published, ladder, static, shuffled, slower, shares, banks = found(summary)
    assert "gsm8k: not seen." in entropy
    assert all(text.startswith("Not measured") for text in (published, ladder, static, shuffled, shares, banks))
    assert slower.startswith("Not known.")
    assert "no claim, too few prompts (2)" in slower
    assert not re.search(r"\d\.\d\dx", slower)


def test_the_papers_policy_has_a_sentence_of_its_own_suite_by_suite(report: Path) -> None:
    """Whatever arm is best, and with nothing claimed of too few prompts."""
    summary = read_study(report).summary
    values = {"humaneval": 0.98, "gsm8k": 1.0, "sharegpt": 0.99, "litbench": 0.985}
    rows = [
        replace(row, ratio=Estimate(values[row.suite], 0.9, 0.99), log_error=0.0005)
        if (row.arm, row.baseline) == ("entmtp", "hydra-best") and row.suite in values
        else row
        for row in summary.speedups
    ]
    sentence = found(replace(summary, speedups=rows))[2]
    assert "0.98 to 1.00 of the speed of hydra-best" in sentence
    assert "humaneval 0.98x [0.98, 0.98] (slower)" in sentence
    few = [replace(row, ratio=replace(row.ratio, low=None, high=None), log_error=None) for row in rows]
    sentence = found(replace(summary, speedups=few))[2]
    assert "no claim against hydra-best" in sentence
    assert not re.search(r"\d\.\d\dx", sentence)


def with_error(summary: Summary, arm: str, baseline: str, ratio: float, error: float) -> Summary:
    """The summary with another speedup of an arm, known to a standard error of 10 degrees of freedom."""
    log_ratio = LogMean(math.log(ratio), error, 10)
    rows = [
        replace(row, ratio=log_ratio.estimate(), log_error=error, freedom=10)
        if (row.arm, row.baseline) == (arm, baseline)
        else row
        for row in summary.speedups
    ]
    return replace(summary, speedups=rows)


def test_the_intervals_of_a_claim_hold_together_with_those_of_every_arm_that_might_have_been_best(
    report: Path,
) -> None:
    """An arm that is faster by each interval alone, and not by all of them together."""
    summary = with_error(read_study(report).summary, "entmtp-dynamic", "hydra-best", 1.2, 0.06)
    assert {row.verdict for row in summary.speedups if (row.arm, row.baseline) == ("entmtp-dynamic", "hydra-best")} == {
        "faster"
    }
    static = found(summary)[3]
    assert static.startswith("entmtp-dynamic against hydra-best: inconclusive in 4 of 4 comparisons.")
    assert static.endswith("The intervals hold all together with 95%, for 15 comparisons.")
    wide = LogMean(math.log(1.2), 0.06, 10).estimate(15)
    assert f"gsm8k: entmtp-dynamic is 1.20x [{wide.low:.2f}, {wide.high:.2f}] as fast as hydra-best" in static


@pytest.mark.parametrize(("ratio", "error", "begin"), [(1.5, 0.3, "Not known."), (1.5, 0.01, "Holds.")])
def test_never_slower_holds_only_where_every_arm_is_faster(
    ratio: float, error: float, begin: str, report: Path
) -> None:
    summary = read_study(report).summary
    for arm in {row.arm for row in summary.arms if row.arm.startswith("entmtp")}:
        summary = with_error(summary, arm, "autoregressive", ratio, error)
    assert found(summary)[5].startswith(begin)


def test_a_wide_interval_overlaps_the_papers_range_and_does_not_agree(report: Path) -> None:
    summary = with_error(read_study(report).summary, "entmtp", "hydra", 1.5, 0.3)
    assert re.search(r"entmtp against hydra, .*: humaneval 1\.50x \[.*?\] \(overlaps\), ", found(summary)[1])


def test_a_correlation_of_the_other_sign_is_the_reverse(report: Path) -> None:
    summary = read_study(report).summary
    rows = [replace(row, correlation=Estimate(0.5, 0.4, 0.6)) for row in summary.entropy_correlations]
    entropy = found(replace(summary, entropy_correlations=rows))[0]
    assert entropy.startswith("Holds on 0 of 4 suites")
    assert "gsm8k: the reverse. Correlation" in entropy


def test_a_published_tree_that_is_cheap_on_some_suites_is_not_called_fair(report: Path) -> None:
    summary = read_study(report).summary
    cheap = [replace(row, verify_ms=30.0, draft_ms=1.0, other_ms=0.0) for row in summary.arms]
    mixed = [replace(row, verify_ms=300.0) if row.suite == "gsm8k" and row.arm == "hydra" else row for row in cheap]
    published = found(replace(summary, arms=mixed))[1]
    assert "on some suites this comparison is easy to win" in published
    assert published.count("fair") == 1, "medusa's"


def test_a_run_without_git_is_described_so(report: Path) -> None:
    study = read_study(report)
    settings = {"prompts": 4, "max_new_tokens": 8, "repetitions": 1}
    without = replace(study, provenance={**study.provenance, "settings": settings, "git_commit": None})
    assert "of 2026-01-01, code without git, on a | CPU: up to 4 prompts a suite" in without.run


def test_published_trees_that_cost_little_are_a_fair_comparison(report: Path) -> None:
    summary = read_study(report).summary
    cheap = [replace(row, verify_ms=30.0, draft_ms=1.0, other_ms=0.0) for row in summary.arms]
    published = found(replace(summary, arms=cheap))[1]
    assert "this comparison is a fair one" in published
    assert "easy" not in published


def test_what_is_missing_is_named_with_its_remedy(report: Path, tmp_path: Path) -> None:
    with pytest.raises(EntMTPError, match=r"summary\.json can't be read .*make it with 'make study'"):
        publish(tmp_path, tmp_path / "study", [], "2026-01-02")
    content = json.loads((report / "summary.json").read_text(encoding="utf-8"))
    path = tmp_path / "summary.json"
    lacking = {"tables": {name: rows for name, rows in content["tables"].items() if name != "speedups"}}
    path.write_text(json.dumps(content | lacking))
    with pytest.raises(EntMTPError, match=r"summary\.json has no 'speedups'; make it with 'make study'"):
        publish(tmp_path, tmp_path / "study", [], "2026-01-02")
    path.write_text(json.dumps(content | {"tables": content["tables"] | {"arms": [{"suite": "gsm8k"}]}}))
    with pytest.raises(EntMTPError, match="table 'arms' has no column 'source'"):
        publish(tmp_path, tmp_path / "study", [], "2026-01-02")
    path.write_text(json.dumps(content))
    with pytest.raises(EntMTPError, match=r"speedup\.png does not exist"):
        publish(tmp_path, tmp_path / "study", [], "2026-01-02")
    path.write_text("{")
    with pytest.raises(EntMTPError, match="is not JSON"):
        publish(tmp_path, tmp_path / "study", [], "2026-01-02")
    assert not (tmp_path / "study.md").exists()


def study_commands() -> list[str]:
    """The benchmarks that `make study` runs, with their options."""
    target = (origin.ROOT / "Makefile").read_text(encoding="utf-8").split("\nstudy:")[1].split("\n\n")[0]
    return re.findall(r"-m benchmarks\.(.+)", target)


@pytest.mark.parametrize("text", study_commands())
def test_make_study_names_options_that_exist(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "changed_files", list)
    name, *options = text.split()
    app = typer.Typer()
    app.command()(main_of(name))
    context = typer.main.get_command(app).make_context(name, options)
    record = context.params.get("record")
    assert record is None or record.parent == study.FOLDER.relative_to(origin.ROOT)


def test_make_study_begins_with_the_checkout_and_ends_with_the_page() -> None:
    assert [study_commands()[0], study_commands()[-1]] == ["origin", "study"]


def test_make_study_runs_every_study_into_the_folder_that_the_page_reads() -> None:
    target = (origin.ROOT / "Makefile").read_text(encoding="utf-8")
    for name in STUDIES:
        assert f"jobs/local.py jobs/benchmark.py --profile {name} --results results/{name} $(ARGS)\n" in target
    folders = [parameter.default for parameter in inspect.signature(study.main).parameters.values()]
    assert folders == [Path("results") / name for name in STUDIES]


def test_a_correlation_that_is_unknown_is_not_seen(report: Path) -> None:
    summary = read_study(report).summary
    rows = [
        replace(row, correlation=replace(row.correlation, value=math.nan, low=None, high=None))
        for row in summary.entropy_correlations
    ]
    assert found(replace(summary, entropy_correlations=rows))[0].startswith("Holds on 0 of 4 suites")
