#!/usr/bin/env python3
"""The speedups of a benchmark as a record: the study's closest question with more prompts and longer answers.

    python jobs/local.py jobs/benchmark.py --profile study --arm autoregressive --arm hydra-best \\
        --arm entmtp-dynamic --arm random --prompts 20 --max-new-tokens 96 --results results/closer
    python -m benchmarks.speedups --results results/closer

A few percent between two arms are more than a dozen short answers can tell; four arms leave the time to ask for more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.lib.record import Cell, RecordOption, Table, UncommittedOption, deliver, make_record
from benchmarks.study.input import read_study
from entmtp.cli_errors import plain_errors
from entmtp.errors import EntMTPError
from entmtp.evaluation.analysis.summary import Summary
from entmtp.intervals import CONFIDENCE, FEWEST_PROMPTS, METHOD, ratio


def main(
    results: Annotated[Path, typer.Option(help="results folder of the benchmark")] = Path("results/closer"),
    arm: Annotated[str, typer.Option(help="whose speedups")] = "entmtp-dynamic",
    record: RecordOption = None,
    uncommitted: UncommittedOption = False,
) -> None:
    """Print the speedups of an arm over all others."""
    with plain_errors("speedups"):
        study = read_study(results / "report")
        notes = [
            f"From {study.run}",
            f"The column's wall-clock time over {arm}'s for the same tokens of the same prompts: above 1, {arm} is"
            f" faster. A dash has fewer than {FEWEST_PROMPTS} prompts.",
            f"Intervals are {CONFIDENCE:.0%}: {METHOD}. Each holds for its own comparison: of twenty, one may miss.",
        ]
        title = f"Speedup of {arm} over other arms"
        made = make_record("speedups", title, str(study.provenance["hardware"]), [speedups(study.summary, arm)], notes)
        # The numbers are of the benchmark's date and code, not of those that this record is made with.
        measured = {"date": study.provenance["date"], "commit": study.commit}
        deliver(made.model_copy(update=measured), record, uncommitted)


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
