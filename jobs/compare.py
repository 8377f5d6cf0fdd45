#!/usr/bin/env python3
"""Comparison of finished benchmark runs, from different machines or versions of the code.

    python jobs/compare.py results/a100 results/h100
    python jobs/compare.py before=4f0c… after=9b1e… --tracking-uri http://mlflow:5000 --output results/comparison
    python jobs/compare.py baseline/results results --fail-below 0.97
    ray job submit --working-dir . -- python jobs/compare.py /shared/a100 /shared/h100 --output /shared/comparison

Every run is compared with the first, on the prompts that all runs have. `--fail-below` is a gate for continuous
integration. The exit code is 1 if the whole 95% interval of an arm's speed relative to the first run is below the
bound, 2 if the runs can't be compared, and 0 otherwise.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

# A submitted job runs from an uploaded copy of the checkout, so import the code from that copy.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import typer
from rich.console import Console

from entmtp.cli_errors import plain_errors
from entmtp.evaluation.report.compare_runs import compare, regressions
from entmtp.evaluation.report.comparison import print_comparison, write_comparison
from entmtp.evaluation.report.load_run import open_run
from entmtp.persistent_paths import check_persistent_path

REGRESSION = 1
_WIDTH = 120
"""Width of the tables if the output is not a terminal."""


def main(
    runs: Annotated[list[str], typer.Argument(help="RUN or NAME=RUN: results folders, or MLflow's run ids or names")],
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow, for runs that are not folders")] = None,
    output: Annotated[Path | None, typer.Option(help="folder for the comparison as Markdown, CSV and Parquet")] = None,
    fail_below: Annotated[float | None, typer.Option(help="exit code 1 where an arm is surely slower than so")] = None,
) -> None:
    """Compare finished benchmark runs with the first of them."""
    with plain_errors("compare", interrupted="nothing was written"):
        if output is not None:
            check_persistent_path("output", output, "--output an absolute path")
        comparison = compare([open_run(run, tracking_uri) for run in runs])
        print_comparison(Console() if sys.stdout.isatty() else Console(width=_WIDTH), comparison)
        if output is not None:
            print(f"comparison {write_comparison(output, comparison)}")
        slower = [] if fail_below is None else regressions(comparison, fail_below)
    for line in slower:
        print(f"regression: {line}", file=sys.stderr)
    if slower:
        sys.exit(REGRESSION)


if __name__ == "__main__":
    typer.run(main)
