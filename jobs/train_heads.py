#!/usr/bin/env python3
"""Trains Medusa and Hydra heads on the cluster, each on a GPU where there are some.

ray job submit --working-dir . -- python jobs/train_heads.py --prompts /shared/prompts.jsonl --output /shared/heads
"""

from __future__ import annotations

import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

# A submitted job runs from an uploaded copy of the checkout: that copy is the code that runs.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import typer
from rich.console import Console

from entmtp.cli_errors import told_plainly
from entmtp.evaluation.tracking import TRAINING_EXPERIMENT, check_tracking, tracked_training
from entmtp.heads.checkpoint import KINDS
from entmtp.training.train_heads import train_heads


@ray.remote
def train_one(kind: str, prompts: Path, output: Path, model: str, device: str, tracking_uri: str | None) -> str:
    """One kind of heads, written to a folder that every node sees."""
    folder = output / kind
    heads = train_heads(
        prompts=prompts,
        output=folder,
        model=model,
        overrides={"kind": kind},
        tracked=partial(tracked_training, tracking_uri, folder),
        device=device,
        console=Console(),
    )
    return str(heads)


def main(
    prompts: Annotated[
        Path, typer.Option(help="JSON lines with a 'prompt' each; on a cluster, where every node sees it")
    ],
    output: Annotated[Path, typer.Option(help="folder for text, checkpoints and heads")],
    kind: Annotated[list[str] | None, typer.Option(help="medusa, hydra; repeat for several (default: both)")] = None,
    model: Annotated[str, typer.Option(help="'bundled', a hub name or a local folder")] = "bundled",
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow address; without it nothing is tracked")] = None,
) -> None:
    """Train draft heads over the cluster."""
    with told_plainly("train"):
        if tracking_uri is not None:
            check_tracking(tracking_uri, TRAINING_EXPERIMENT)
        ray.init(logging_level=logging.ERROR)
        gpu = ray.cluster_resources().get("GPU", 0) >= 1
        worker = train_one.options(num_gpus=1) if gpu else train_one.options(num_cpus=os.cpu_count() or 1)
        device = "cuda" if gpu else "cpu"
        work = [
            worker.remote(each, prompts.absolute(), output.absolute(), model, device, tracking_uri)
            for each in (kind or list(KINDS))
        ]
        print("\n".join(ray.get(work)))


if __name__ == "__main__":
    typer.run(main)
