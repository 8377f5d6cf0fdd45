#!/usr/bin/env python3
"""Load test of one or two OpenAI-compatible endpoints, with prompts from the suites; results go to MLflow.

    python jobs/load.py --endpoint entmtp=http://127.0.0.1:8000/v1 --model smollm2-135m --users 4
    python jobs/load.py --endpoint dynamic=http://HOST/v1#entmtp-dynamic --endpoint hydra=http://HOST/v1#hydra \\
        --model vicuna-7b --rate 3 --requests 200
    python jobs/load.py --endpoint here=http://127.0.0.1:8000/v1 --model smollm2-135m --suite speed-bench-1k \\
        --data speed-bench-1k=throughput_1k.jsonl
    ray job submit --working-dir . -- python jobs/load.py --endpoint … --results /shared/results

`--users` is a closed loop: each user sends the next request after the last answer. `--rate` is an open loop: requests
per second at random times, whatever has been answered. Either takes several numbers separated by commas. The default is
1, 2, 4 … 64 users. A table and a figure show throughput against latency. Two endpoints take turns, round by round, with
the same prompts at the same times, and their texts are compared.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

# A submitted job runs from an uploaded copy of the checkout, so import the code from that copy.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from entmtp.cli_errors import plain_errors
from entmtp.errors import EntMTPError

if TYPE_CHECKING:
    from entmtp.loadtest.levels import Level
    from entmtp.loadtest.traffic import Traffic
    from entmtp.loadtest.turns import Rounds

_WIDTH = 150
"""Width of the table if the output is not a terminal."""

KEY_VARIABLE = "OPENAI_API_KEY"


def main(
    endpoint: Annotated[list[str], typer.Option(help="NAME=URL or NAME=URL#METHOD; at most two")],
    model: Annotated[str, typer.Option(help="the model to ask for")],
    users: Annotated[
        str | None, typer.Option(help="closed loops: so many at once, such as 4 or 1,8,64 (default: 1,2,4,8,16,32,64)")
    ] = None,
    rate: Annotated[str | None, typer.Option(help="open loops: requests a second, such as 2 or 0.5,1,2")] = None,
    requests: Annotated[int, typer.Option(min=1, help="in each round, or two for each user if that is more")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="turns of each endpoint at each load")] = 3,
    suite: Annotated[
        list[str] | None, typer.Option(help="prompts of these, see docs/suites.md (default: the paper's four)")
    ] = None,
    data: Annotated[list[str] | None, typer.Option(help="SUITE=FILE in the suite's schema; may repeat")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="new tokens of each request")] = 64,
    slo_ttft: Annotated[float, typer.Option(min=0, help="seconds until the first token that are promised")] = 1.0,
    slo_tpot: Annotated[float, typer.Option(min=0, help="seconds for each other token that are promised")] = 0.1,
    timeout: Annotated[float, typer.Option(min=0.1, help="seconds for a request")] = 600.0,
    seed: Annotated[int, typer.Option(help="of the prompts and the moments")] = 0,
    results: Annotated[Path, typer.Option(help="folder for the table and the MLflow database")] = Path("results/load"),
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow; default: a database in the results folder")] = None,
) -> None:
    """Send load, and say what users saw."""
    with plain_errors("load", interrupted="nothing was recorded"):
        from entmtp.evaluation.results.flat_tables import write_table
        from entmtp.evaluation.run.options import named_paths
        from entmtp.files import make_folder
        from entmtp.loadtest.levels import parse_levels
        from entmtp.loadtest.load_plot import draw_load
        from entmtp.loadtest.load_summary import Slo, level_table, outcome_table, summarise_load
        from entmtp.loadtest.load_table import comparison_lines, terminal_table
        from entmtp.loadtest.mlflow import LOAD_EXPERIMENT, log_load
        from entmtp.loadtest.traffic import Endpoint, Traffic
        from entmtp.loadtest.turns import texts_by_request
        from entmtp.persistent_paths import check_persistent_path
        from entmtp.suites import FAMILIES, suite_names
        from entmtp.tracking.client import check_tracking, default_tracking_uri
        from entmtp.tracking.names import check_names

        levels, suites = parse_levels(users, rate), suite_names(suite or [])
        files = named_paths("data", data or [], FAMILIES)
        key = os.environ.get(KEY_VARIABLE, "none")
        endpoints = [Endpoint.parse(text, model, key) for text in endpoint]
        if len(endpoints) > 2 or len({one.name for one in endpoints}) < len(endpoints):
            raise EntMTPError("endpoint: give one, or two with different names")
        provenance: dict[str, Any] = {
            "model": model,
            "levels": ", ".join(map(str, levels)),
            "requests": requests,
            "rounds": rounds,
            "seed": seed,
            "max_tokens": max_tokens,
            "slo.ttft": slo_ttft,
            "slo.tpot": slo_tpot,
            "suites": suites,
        }
        keys = {one.name: f"endpoint.{one.name}" for one in endpoints}
        check_names("endpoint", keys)
        provenance |= {keys[one.name]: one.url for one in endpoints}
        check_persistent_path("results", results, "--results an absolute path")
        uri = tracking_uri or default_tracking_uri(results)
        make_folder("results", results)
        check_tracking(uri, LOAD_EXPERIMENT)
        sent = rounds * sum(level.requests(requests) for level in levels)
        prompts = _prompts(suites, files, sent, seed)
        traffic = [Traffic(one, prompts, max_tokens, timeout) for one in endpoints]
        found = asyncio.run(_run(traffic, levels, requests, rounds, seed))
        slo = Slo(slo_ttft, slo_tpot)
        summaries = {
            level: [
                summarise_load(name, its, slo, texts_by_request(each[endpoints[0].name])) for name, its in each.items()
            ]
            for level, each in found.items()
        }
        tables = {"requests": outcome_table(found), "levels": level_table(summaries)}
        for name, table in tables.items():
            write_table(results / name, table)
        plot = draw_load(results / "throughput.png", summaries)
        console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
        console.print(terminal_table(summaries, slo))
        for level, each in found.items():
            for line in comparison_lines(level, each, summaries[level]):
                console.print(line)
        console.print(f"Throughput against latency: {plot.path}", soft_wrap=True)
        print(f"MLflow: {log_load(uri, LOAD_EXPERIMENT, provenance, summaries, tables, plot.path).open_command}")


def _prompts(suites: list[str], files: Mapping[str, str], count: int, seed: int) -> list[str]:
    """Scored prompts without earlier messages, alternating between suites; at most ``count`` rounded up per suite."""
    from entmtp.suites import get_suite, scored_prompts

    of_each = -(-count // len(suites))
    each = [scored_prompts(name, of_each, seed, files.get(get_suite(name).family)) for name in suites]
    return [one.text for row in itertools.zip_longest(*each) for one in row if one is not None and not one.history]


async def _run(
    traffic: list[Traffic], levels: list[Level], requests: int, rounds: int, seed: int
) -> dict[Level, Rounds]:
    from entmtp.loadtest.turns import sweep

    total = rounds * len(traffic) * sum(level.requests(requests) for level in levels)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("requests", total=total)
        return await sweep(
            traffic,
            levels,
            rounds,
            requests,
            seed,
            lambda what: bar.update(task, description=what),
            lambda _: bar.advance(task),
        )


if __name__ == "__main__":
    typer.run(main)
