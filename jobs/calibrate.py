#!/usr/bin/env python3
"""Tree banks for several tasks at once, one Ray worker per task, and one bank for all.

ray job submit --working-dir . -- python jobs/calibrate.py --output /shared/banks
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

# A submitted job runs from an uploaded copy of the checkout: that copy is the code that runs.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import typer
from rich.console import Console

from entmtp.cli_errors import told_plainly
from entmtp.evaluation.calibrate_task import calibrate_task
from entmtp.evaluation.suites import PAPER_SUITES, get_suite
from entmtp.trees.bank import MIXED


@ray.remote
def calibrate_one(task: str, output: Path, model: str, heads: list[str], data: Path | None, device: str) -> None:
    """One task's banks, written to a folder that every node sees."""
    calibrate_task(
        task=task,
        output=output,
        model=model,
        heads=heads,
        data=data,
        overrides={},
        device=device,
        console=Console(),
    )


def main(
    output: Annotated[Path, typer.Option(help="folder for the banks; on a cluster, one that every node sees")],
    task: Annotated[
        list[str] | None, typer.Option(help="repeat for several (default: all, and one bank for all, 'mixed')")
    ] = None,
    model: Annotated[str, typer.Option(help="'bundled', a hub name or a local folder")] = "bundled",
    heads: Annotated[list[str] | None, typer.Option(help="medusa=FOLDER and/or hydra=FOLDER, or native=native")] = None,
    data: Annotated[list[str] | None, typer.Option(help="TASK=FILE in the hub's schema; may repeat")] = None,
) -> None:
    """Calibrate tasks over the cluster."""
    with told_plainly("calibrate"):
        named = task or [*PAPER_SUITES, MIXED]
        tasks = [get_suite(name).name for name in named if name != MIXED]
        files = {name: Path(path).absolute() for name, _, path in (text.partition("=") for text in data or [])}
        ray.init(logging_level=logging.ERROR)
        gpu = ray.cluster_resources().get("GPU", 0) >= 1
        # A worker uses all cores of its node: two at once would only slow each other down.
        worker = calibrate_one.options(num_gpus=1) if gpu else calibrate_one.options(num_cpus=os.cpu_count() or 1)
        device = "cuda" if gpu else "cpu"

        def run(names: list[str]) -> None:
            folder = output.absolute()
            ray.get([worker.remote(name, folder, model, heads or [], files.get(name), device) for name in names])

        run(tasks)
        if MIXED in named:
            run([MIXED])  # made from what the others wrote


if __name__ == "__main__":
    typer.run(main)
