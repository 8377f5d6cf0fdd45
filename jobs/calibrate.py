#!/usr/bin/env python3
"""Calibration job: tree banks for several tasks at once, one Ray worker per task, and one bank for all tasks.

ray job submit --working-dir . -- python jobs/calibrate.py --output /shared/banks
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

# A submitted job runs from an uploaded copy of the checkout, so import the code from that copy.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import typer
from rich.console import Console

from entmtp.calibration.command import calibrate_task
from entmtp.cli_errors import plain_errors
from entmtp.evaluation.run.placement import ResourceRequest, choose_placement
from entmtp.persistent_paths import check_persistent_path
from entmtp.suites import MIXED, PAPER_SUITES, get_suite
from jobs.pool import alive_nodes
from jobs.workers import call_each


def calibrate_one(task: str, output: Path, model: str, heads: list[str], data: Path | None, device: str) -> None:
    """Calibrate one task; writes its banks to a folder that every node sees."""
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
    model: Annotated[str, typer.Option(help="'bundled', a hub name, a local folder or a GGUF file")] = "bundled",
    heads: Annotated[
        list[str] | None,
        typer.Option(help="hydra=FOLDER, eagle3=…, dflash=…, medusa=… or native=native; may repeat"),
    ] = None,
    data: Annotated[list[str] | None, typer.Option(help="TASK=FILE in the hub's schema; may repeat")] = None,
    cpus_per_worker: Annotated[
        int | None, typer.Option(help="of a worker without a GPU, where a service holds others (default: a node's)")
    ] = None,
) -> None:
    """Calibrate tasks over the cluster."""
    with plain_errors("calibrate"):
        named = task or [*PAPER_SUITES, MIXED]
        tasks = [get_suite(name).name for name in named if name != MIXED]
        files = {name: Path(path).absolute() for name, _, path in (text.partition("=") for text in data or [])}
        check_persistent_path("output", output, "--output an absolute path that every node sees")
        ray.init(logging_level=logging.ERROR)
        placement = choose_placement(alive_nodes(), ResourceRequest(cpus_per_worker=cpus_per_worker))

        def run(names: list[str]) -> None:
            folder, given = output.absolute(), heads or []
            calls = [(name, folder, model, given, files.get(name), placement.device) for name in names]
            call_each(calibrate_one, calls, placement)

        run(tasks)
        if MIXED in named:
            run([MIXED])  # from the files that the other tasks wrote


if __name__ == "__main__":
    typer.run(main)
