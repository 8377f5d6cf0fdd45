#!/usr/bin/env python3
"""The speedups of a benchmark as a record: the study's closest question, asked with more prompts and longer answers.

    python jobs/local.py jobs/benchmark.py --profile study --arm autoregressive --arm hydra-best \\
        --arm entmtp-dynamic --arm random --prompts 20 --max-new-tokens 96 --results results/closer
    python -m benchmarks.speedups --results results/closer

A few percent between two arms are more than a dozen short answers can tell; four arms leave the time to ask for more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.lib.record import Cell, RecordOption, Table, UncommittedOption, deliver, make_record, portable_words
from benchmarks.study.input import read_study
from entmtp.cli_errors import plain_errors
from entmtp.errors import EntMTPError
from entmtp.evaluation.analysis.summary import Summary
from entmtp.intervals import CONFIDENCE, ratio


def main(
    results: Annotated[Path, typer.Option(help="results folder of the benchmark")] = Path("results/closer"),
    arm: Annotated[str, typer.Option(help="whose speedups")] = "entmtp-dynamic",
    record: RecordOption = None,
    uncommitted: UncommittedOption = False,
) -> None:
    """Print the speedups of an arm over all others."""
    with plain_errors("speedups"):
        study = read_study(results / "report")
        settings = study.provenance["settings"]
        command = portable_words(study.provenance["command"])
        notes = [
            f"From `{command}` of {study.provenance['date']}, commit {study.provenance['git_commit'][:9]}: up to"
            f" {settings['prompts']} prompts a suite, {settings['max_new_tokens']} tokens each, the median of"
            f" {settings['repetitions']} repetitions.",
            f"Wall-clock time over the arm's on the same prompts, with {CONFIDENCE:.0%} intervals over prompts.",
        ]
        title = f"{arm}, more closely"
        machine = str(study.provenance["hardware"])
        deliver(make_record("speedups", title, machine, [speedups(study.summary, arm)], notes), record, uncommitted)


def speedups(summary: Summary, arm: str) -> Table:
    """A row for each suite, and one for all together.

    Raises:
        EntMTPError: the arm is compared with nothing.
    """
    mine = [row for row in summary.speedups if row.arm == arm]
    if not mine:
        others = ", ".join(dict.fromkeys(row.arm for row in summary.speedups))
        raise EntMTPError(f"arm: '{arm}' was compared with none; choose one of {others}")
    baselines = list(dict.fromkeys(row.baseline for row in mine))
    rows: list[list[Cell]] = []
    for suite in dict.fromkeys(row.suite for row in mine):
        against = {row.baseline: row for row in mine if row.suite == suite}
        prompts = min(row.prompts for row in against.values())
        found = (against.get(baseline) for baseline in baselines)
        rows.append([summary.label(suite), prompts, *("" if one is None else ratio(one.ratio) for one in found)])
    return Table(title=f"{arm} over", columns=["suite", "prompts", *baselines], rows=rows)


if __name__ == "__main__":
    typer.run(main)
