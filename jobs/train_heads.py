#!/usr/bin/env python3
"""Training job: one text for all kinds of heads, then each kind in a worker of its own, on GPUs if there are any.

ray job submit --working-dir . -- python jobs/train_heads.py --prompts /shared/prompts.jsonl --output /shared/heads
"""

from __future__ import annotations

import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

# A submitted job runs from an uploaded copy of the checkout, so import the code from that copy.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import typer
from rich.console import Console

from entmtp.cli_errors import plain_errors
from entmtp.evaluation.run.placement import ResourceRequest, choose_placement
from entmtp.heads.checkpoint import KINDS
from entmtp.persistent_paths import check_persistent_path
from entmtp.tracking.client import check_tracking
from entmtp.training.kinds import find_trainer
from entmtp.training.mlflow import TRAINING_EXPERIMENT, tracked_training
from entmtp.training.train_heads import CHECKPOINTS, prepare_training, train_heads
from jobs.pool import alive_nodes
from jobs.workers import call_each


def prepare(kinds: list[str], prompts: Path, output: Path, model: str, device: str) -> None:
    """Write the text and the states that all kinds are trained from, to a folder that every node sees."""
    prepare_training(kinds=kinds, prompts=prompts, output=output, model=model, device=device, console=Console())


def train_one(kind: str, prompts: Path, output: Path, model: str, device: str, tracking_uri: str | None) -> str:
    """Train one kind of heads from them; returns the heads' folder."""
    heads = train_heads(
        prompts=prompts,
        output=output,
        model=model,
        overrides={"kind": kind},
        tracked=partial(tracked_training, tracking_uri, output / CHECKPOINTS),
        device=device,
        console=Console(),
    )
    return str(heads)


def main(
    prompts: Annotated[
        Path, typer.Option(help="JSON lines with a 'prompt' each; on a cluster, where every node sees it")
    ],
    output: Annotated[Path, typer.Option(help="folder for text, checkpoints and heads")],
    kind: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(KINDS)}; repeat for several (default: all)")
    ] = None,
    model: Annotated[str, typer.Option(help="'bundled', a hub name, a local folder or a GGUF file")] = "bundled",
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow address; without it nothing is tracked")] = None,
    cpus_per_worker: Annotated[
        int | None, typer.Option(help="of a worker without a GPU, where a service holds others (default: a node's)")
    ] = None,
) -> None:
    """Train draft heads over the cluster."""
    kinds = list(dict.fromkeys(kind or KINDS))
    with plain_errors("train"):
        for each in kinds:
            find_trainer(each)
        if tracking_uri is not None:
            check_tracking(tracking_uri, TRAINING_EXPERIMENT)
        check_persistent_path("output", output, "--output an absolute path that every node sees")
        ray.init(logging_level=logging.ERROR)
        placement = choose_placement(alive_nodes(), ResourceRequest(cpus_per_worker=cpus_per_worker))
        given = prompts.absolute(), output.absolute(), model, placement.device
        call_each(prepare, [(kinds, *given)], placement)
        print("\n".join(call_each(train_one, [(each, *given, tracking_uri) for each in kinds], placement)))


if __name__ == "__main__":
    typer.run(main)
