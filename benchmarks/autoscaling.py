#!/usr/bin/env python3
"""Autoscaling: number of replicas under a changing load of one user, eight, and one again.

    python -m benchmarks.autoscaling --figure autoscaling.svg

It runs on the cluster of `benchmarks.faults`. No request may be lost when a replica is removed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import torch
import typer
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.faults import ENGINE, Clients, ServiceCluster, service_cluster
from benchmarks.lib.record import Cell, RecordOption, Table, UncommittedOption, deliver, make_record
from entmtp.cli_errors import plain_errors
from entmtp.evaluation.report.plot_style import line_colour, style_context
from entmtp.files import write_whole
from entmtp.policies.step_cost import hardware_name

USERS = (1, 8, 1)
_TOKENS = 48
_SAMPLE_SECONDS = 0.5
NOTES = (
    "Replicas are those that run, sampled twice a second. The two nodes of the cluster share this machine's cores, so a"
    " second replica shows that scaling works, and not what it gains.",
)
Samples = list[tuple[float, int, int]]


def main(
    seconds: Annotated[float, typer.Option(min=5, help="of each load")] = 80.0,
    figure: Annotated[Path | None, typer.Option(help="picture to draw")] = None,
    record: RecordOption = None,
    uncommitted: UncommittedOption = False,
) -> None:
    """Change the load and sample the number of replicas."""
    with plain_errors("autoscaling", interrupted="nothing was recorded"):
        with service_cluster() as cluster:
            samples, outcomes = asyncio.run(_play(cluster, seconds))
        if figure is not None:
            write_whole(figure, lambda path: _drawn(samples).savefig(path, format=figure.suffix.lstrip(".")))
        table = _table(samples, outcomes, seconds)
        machine = hardware_name(torch.device("cpu"))
        deliver(make_record("autoscaling", "Autoscaling", machine, [table], NOTES, figure), record, uncommitted)


async def _play(cluster: ServiceCluster, seconds: float) -> tuple[Samples, list[Counter[str]]]:
    await cluster.wait()
    url = f"http://127.0.0.1:{cluster.port}"
    await Clients(url, 1, _TOKENS).record_expected()
    await asyncio.to_thread(cluster.deploy, 1, 2)
    await cluster.wait(engines=1)
    samples: Samples = []
    outcomes = []
    began = time.monotonic()
    for users in USERS:
        clients = Clients(url, users, _TOKENS)
        await clients.record_expected()
        ends = time.monotonic() + seconds
        async with clients.sending() as outcome:
            while time.monotonic() < ends:
                running = await asyncio.to_thread(cluster.running, ENGINE)
                samples.append((time.monotonic() - began, users, running))
                await asyncio.sleep(_SAMPLE_SECONDS)
        outcomes.append(outcome.outcomes)
        Console(stderr=True).print(f"{users} users: {dict(outcome.outcomes)}, {samples[-1][2]} replicas")
    return samples, outcomes


def _table(samples: Samples, outcomes: list[Counter[str]], seconds: float) -> Table:
    rows: list[list[Cell]] = []
    for number, (users, outcome) in enumerate(zip(USERS, outcomes, strict=True)):
        part = [replicas for at, _, replicas in samples if number <= at / seconds < number + 1]
        counts = [outcome[kind] for kind in ("answered", "told", "lost", "wrong")]
        rows.append([users, min(part, default=0), max(part, default=0), part[-1] if part else 0, *counts])
    columns = ["users", "replicas, least", "most", "at the end", "answered", "told", "lost", "wrong"]
    return Table(title=f"{seconds:g} s of each load", columns=columns, rows=rows)


def _drawn(samples: Samples) -> Figure:
    with style_context():
        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        times = [at for at, _, _ in samples]
        for number, (name, values) in enumerate(
            {"users": [users for _, users, _ in samples], "replicas": [count for _, _, count in samples]}.items()
        ):
            axes.step(times, values, where="post", label=name, color=line_colour(number))
        axes.set_xlabel("seconds")
        axes.set_ylabel("count")
        axes.set_ylim(bottom=0)
        axes.legend()
    return figure


if __name__ == "__main__":
    typer.run(main)
