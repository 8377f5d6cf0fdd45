#!/usr/bin/env python3
"""Load on an OpenAI-compatible endpoint, or on two in turns, with prompts from the suites; results in MLflow.

    python jobs/load.py --endpoint entmtp=http://127.0.0.1:8000/v1 --model smollm2-135m --users 4
    python jobs/load.py --endpoint dynamic=http://HOST/v1#entmtp-dynamic --endpoint hydra=http://HOST/v1#hydra \\
        --model vicuna-7b --rate 3 --requests 200
    ray job submit --working-dir . -- python jobs/load.py --endpoint … --results /shared/results

`--users` is a closed loop: so many ask again when answered. `--rate` is an open loop: requests at random moments, so
many a second, whatever has been answered. Two endpoints take turns, round by round, with the same prompts at the same
moments, and their texts are compared.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

# A submitted job runs from an uploaded copy of the checkout: that copy is the code that runs.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from entmtp.cli_errors import told_plainly
from entmtp.errors import EntMTPError

if TYPE_CHECKING:
    from entmtp.evaluation.load.load_summary import LoadSummary, Slo
    from entmtp.evaluation.load.traffic import Outcome, Traffic
    from entmtp.evaluation.load.turns import Rounds

_PROMPTS = 64
_WIDTH = 150
"""Of the table, where no terminal says how wide it may be."""

KEY_VARIABLE = "OPENAI_API_KEY"


def main(
    endpoint: Annotated[list[str], typer.Option(help="NAME=URL or NAME=URL#METHOD; at most two")],
    model: Annotated[str, typer.Option(help="the model to ask for")],
    users: Annotated[int | None, typer.Option(min=1, help="closed loop: so many at once")] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="open loop: requests a second")] = None,
    requests: Annotated[int, typer.Option(min=1, help="in each round")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="turns of each endpoint")] = 3,
    suite: Annotated[list[str] | None, typer.Option(help="prompts of these; default: all")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="new tokens of each request")] = 64,
    slo_ttft: Annotated[float, typer.Option(min=0, help="seconds until the first token that are promised")] = 1.0,
    slo_tpot: Annotated[float, typer.Option(min=0, help="seconds for each other token that are promised")] = 0.1,
    timeout: Annotated[float, typer.Option(min=0.1, help="seconds for a request")] = 600.0,
    seed: Annotated[int, typer.Option(help="of the prompts and the moments")] = 0,
    results: Annotated[Path, typer.Option(help="folder for the table and the MLflow database")] = Path("results/load"),
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow; default: a database in the results folder")] = None,
) -> None:
    """Send load, and say what users saw."""
    with told_plainly("load", interrupted="nothing was recorded"):
        import pyarrow.parquet as pq

        from entmtp.evaluation.load.load_summary import Slo, outcome_table, summarise_load
        from entmtp.evaluation.load.traffic import Endpoint, Traffic
        from entmtp.evaluation.load.turns import texts_of
        from entmtp.evaluation.storage import check_lasting
        from entmtp.evaluation.suites import PAPER_SUITES
        from entmtp.evaluation.tracking import LOAD_EXPERIMENT, check_tracking, default_tracking_uri, log_load
        from entmtp.evaluation.tracking_names import check_names
        from entmtp.files import write_whole

        if (users is None) == (rate is None):
            raise EntMTPError("users: give either --users (closed loop) or --rate (open loop)")
        key = os.environ.get(KEY_VARIABLE, "none")
        endpoints = [Endpoint.parse(text, model, key) for text in endpoint]
        if len(endpoints) > 2 or len({one.name for one in endpoints}) < len(endpoints):
            raise EntMTPError("endpoint: give one, or two with different names")
        facts: dict[str, Any] = {
            "model": model,
            "users": users,
            "rate": rate,
            "requests": requests,
            "rounds": rounds,
            "seed": seed,
            "max_tokens": max_tokens,
            "slo.ttft": slo_ttft,
            "slo.tpot": slo_tpot,
            "suites": suite or list(PAPER_SUITES),
        }
        keys = {one.name: f"endpoint.{one.name}" for one in endpoints}
        check_names("endpoint", keys)
        facts |= {keys[one.name]: one.url for one in endpoints}
        check_lasting("results", results, "--results an absolute path")
        uri = tracking_uri or default_tracking_uri(results)
        results.mkdir(parents=True, exist_ok=True)
        check_tracking(uri, LOAD_EXPERIMENT)
        prompts = _prompts(suite or list(PAPER_SUITES), seed)
        traffic = [Traffic(one, prompts, max_tokens, timeout) for one in endpoints]
        found = asyncio.run(_run(traffic, users, rate, requests, rounds, seed))
        texts = texts_of(found[endpoints[0].name])
        slo = Slo(slo_ttft, slo_tpot)
        summaries = [summarise_load(name, its, slo, texts) for name, its in found.items()]
        table = outcome_table(found)
        write_whole(results / "requests.parquet", lambda path: pq.write_table(table, path))
        _show(summaries, found, slo)
        print(f"MLflow: {log_load(uri, LOAD_EXPERIMENT, facts, summaries, table).open_command}")


def _prompts(suites: list[str], seed: int) -> list[str]:
    """Scored prompts, the suites' by turns."""
    from entmtp.evaluation.suites import scored_prompts

    each = [scored_prompts(name, _PROMPTS, seed) for name in suites]
    return [prompt.text for row in itertools.zip_longest(*each) for prompt in row if prompt is not None]


async def _run(
    traffic: list[Traffic], users: int | None, rate: float | None, requests: int, rounds: int, seed: int
) -> Rounds:
    from entmtp.evaluation.load.turns import in_turns

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("requests", total=requests * rounds * len(traffic))

        async def send(one: Traffic, at: int) -> list[Outcome]:
            numbers = range(at * requests, (at + 1) * requests)
            if users is not None:
                return await one.closed(numbers, users, lambda _: bar.advance(task))
            assert rate is not None
            return await one.open(numbers, rate, seed + at, lambda _: bar.advance(task))

        return await in_turns(traffic, rounds, send)


def _show(summaries: list[LoadSummary], found: Rounds, slo: Slo) -> None:
    from entmtp.evaluation.load.load_summary import speedup
    from entmtp.evaluation.verdicts import ratio

    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    table = Table(title=f"ms as p50 / p90 / p99; SLO: first token in {slo.ttft:g} s, others in {slo.tpot:g} s each")
    for column in (
        "endpoint",
        "requests",
        "tokens/s",
        "tau",
        "TTFT",
        "TPOT",
        "ITL",
        "E2E",
        "in SLO",
        "good/s",
        "errors",
    ):
        table.add_column(column)
    for one in summaries:
        times = [
            " / ".join(f"{1e3 * value:.0f}" for value in one.percentiles[name].values())
            if name in one.percentiles
            else "–"
            for name in ("ttft", "tpot", "itl", "e2e")
        ]
        errors = ", ".join(f"{kind}: {count}" for kind, count in one.errors.items()) or "none"
        tau = "–" if one.tau is None else f"{one.tau:.2f}"
        cells = [one.endpoint, str(one.requests), f"{one.tokens_per_second:.1f}", tau, *times]
        table.add_row(*cells, f"{one.kept:.0%}", f"{one.goodput:.2f}", errors)
    console.print(table)
    if len(summaries) == 2:
        (a, mine), (b, theirs) = found.items()
        for quantity, words in {"e2e": "whole answers", "ttft": "first tokens"}.items():
            if (found_ratio := speedup(mine, theirs, quantity)) is not None:
                console.print(f"{a} over {b}, {words}: {ratio(found_ratio)}")
        console.print(f"texts that differ: {summaries[1].differing} of {summaries[1].requests}")


if __name__ == "__main__":
    typer.run(main)
